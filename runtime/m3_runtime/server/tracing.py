"""What is known about each request from outside: its ids, the trace it belongs to, and where its time went.

A plain ASGI middleware around all others, so that refusals have ids too.
"""

import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3_runtime.server.addresses import OPERATION_PATHS, Addresses
from m3_runtime.server.logs import log_fields

REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"

TIMING_HEADERS = (
    "x-compute-type", "x-compute-time", "x-compute-characters", "x-compute-tokens", "x-total-time",
    "x-tokenization-time", "x-queue-time", "x-inference-time",
)  # fmt: skip
"""What text-embeddings-inference says about an answer; times are whole milliseconds."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}")


@dataclass
class RequestTimes:
    """Where a request's time went, filled in by those who do the work. Seconds of `time.perf_counter`.

    Attributes:
        characters: of its texts.
        tokens: of its texts, both special tokens included.
        tokenization_s: how long its texts took to become ids.
        queued_at_s: when its first text began to wait.
        started_at_s: when its first text began to run.
        ended_at_s: when its last text had run.
    """

    characters: int = 0
    tokens: int = 0
    tokenization_s: float = 0.0
    queued_at_s: float | None = None
    started_at_s: float | None = None
    ended_at_s: float | None = None

    def tokenized(self, characters: int, tokens: int, duration_s: float) -> None:
        """Some of its texts have become ids."""
        self.characters += characters
        self.tokens += tokens
        self.tokenization_s += duration_s

    def queued(self) -> None:
        """Some of its texts wait now."""
        self.queued_at_s = self.queued_at_s or time.perf_counter()

    def started(self) -> None:
        """Some of its texts run now."""
        self.started_at_s = self.started_at_s or time.perf_counter()

    def ended(self) -> None:
        """Some of its texts have run."""
        self.ended_at_s = time.perf_counter()

    @property
    def queue_s(self) -> float:
        """How long it waited for its first run."""
        return _between(self.queued_at_s, self.started_at_s)

    @property
    def inference_s(self) -> float:
        """From the start of its first run to the end of its last one, others' runs between them included."""
        return _between(self.started_at_s, self.ended_at_s)


def _between(start_s: float | None, end_s: float | None) -> float:
    return 0.0 if start_s is None or end_s is None else end_s - start_s


_times: ContextVar[RequestTimes | None] = ContextVar("request_times", default=None)


def request_times() -> RequestTimes:
    """Of the request that is answered here; outside of one, times that nobody reads."""
    return _times.get() or RequestTimes()


@dataclass(frozen=True)
class TraceParent:
    """The caller's place in a trace: W3C's header `traceparent`, level 1."""

    trace_id: str
    span_id: str

    @classmethod
    def of(cls, headers: Headers) -> "TraceParent | None":
        """None where there is none, several, or one that is malformed: the specification has it ignored.

        >>> TraceParent.of(Headers({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})).span_id
        'bbbbbbbbbbbbbbbb'
        """
        given = headers.getlist(TRACEPARENT)
        found = _TRACEPARENT.fullmatch(given[0]) if len(given) == 1 else None
        return None if found is None else cls(found[1], found[2])


def request_id_of(headers: Headers) -> str:
    """The caller's id if it gives one that cannot break a log line, else a new one."""
    given = headers.getlist(REQUEST_ID)
    return given[0] if len(given) == 1 and _SANE_ID.fullmatch(given[0]) else uuid.uuid4().hex


@dataclass
class Answered:
    """A request while it is answered, and afterwards; `route` is None where there is nothing at its path."""

    method: str
    route: str | None
    headers: Headers
    start_s: float = field(default_factory=time.perf_counter)
    start_ns: int = field(default_factory=time.time_ns)
    times: RequestTimes = field(default_factory=RequestTimes)
    request_id: str = ""
    status: int = 0


class Span(Protocol):
    """A request's span in a trace."""

    traceparent: str
    fields: dict[str, str]

    def end(self, answered: Answered) -> None:
        """Say how it went."""


class Tracer(Protocol):
    """What makes spans."""

    def begin(self, answered: Answered) -> Span | None:
        """A request's span; None if it has no trace."""

    def close(self) -> None:
        """Send what is left."""


@dataclass
class _CallersSpan:
    """Where nothing is traced here: the caller's own ids, in the log and back in the answer."""

    traceparent: str
    fields: dict[str, str]

    def end(self, answered: Answered) -> None:
        """See `Span.end`."""


class CallersTraces:
    """No spans of our own."""

    def begin(self, answered: Answered) -> Span | None:
        """See `Tracer.begin`."""
        parent = TraceParent.of(answered.headers)
        if parent is None:
            return None
        fields = {"trace_id": parent.trace_id, "parent_span_id": parent.span_id}
        return _CallersSpan(answered.headers[TRACEPARENT], fields)

    def close(self) -> None:
        """See `Tracer.close`."""


class RequestTracing:
    """Gives each request its ids, takes over its trace, and says in the answer where its time went."""

    def __init__(self, app: ASGIApp, tracer: Tracer, addresses: Addresses) -> None:
        """Wrap an app.

        Args:
            app: what answers.
            tracer: what makes spans.
            addresses: what its paths mean.
        """
        self._app = app
        self._tracer = tracer
        self._addresses = addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = self._addresses.known(scope)
        headers = Headers(scope=scope)
        route = self._addresses.route_of(scope["path"])
        answered = Answered(scope["method"], route, headers, request_id=request_id_of(headers))
        span = None if route in OPERATION_PATHS else self._tracer.begin(answered)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.status = message["status"]
                message.setdefault("headers", [])
                _add_headers(MutableHeaders(scope=message), answered, span)
            await send(message)

        with _known(answered, span):
            try:
                await self._app(scope, receive, sending)
            finally:
                if span is not None:
                    span.end(answered)


def _add_headers(headers: MutableHeaders, answered: Answered, span: Span | None) -> None:
    headers[REQUEST_ID] = answered.request_id
    if span is not None:
        headers[TRACEPARENT] = span.traceparent
    times = answered.times
    if not times.tokens or answered.status != HTTPStatus.OK:
        return
    total_ms = _ms(time.perf_counter() - answered.start_s)
    values = (
        "cpu", total_ms, str(times.characters), str(times.tokens), total_ms, _ms(times.tokenization_s),
        _ms(times.queue_s), _ms(times.inference_s),
    )  # fmt: skip
    for name, value in zip(TIMING_HEADERS, values, strict=True):
        headers[name] = value


def _ms(seconds: float) -> str:
    return str(round(1000 * seconds))


@contextmanager
def _known(answered: Answered, span: Span | None) -> Iterator[None]:
    """Let log lines and those who do the work know the request."""
    fields = {"request_id": answered.request_id} | ({} if span is None else span.fields)
    naming, timing = log_fields.set(fields), _times.set(answered.times)
    try:
        yield
    finally:
        log_fields.reset(naming)
        _times.reset(timing)
