"""What is known about each request from outside: its ids, the trace it belongs to, and where its time went.

A plain ASGI middleware around all others, so that refusals have ids too.
"""

import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3_runtime.server.addresses import OPERATION_PATHS, Addresses
from m3_runtime.server.answers import PROBLEM
from m3_runtime.server.logs import log_fields

REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
ANSWERED = "m3.answered"
"""Where the middlewares behind this one find a request's `Answered` in the scope."""

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


def _between(start_s: float | None, end_s: float | None) -> float:
    return 0.0 if start_s is None or end_s is None else end_s - start_s


_times: ContextVar[RequestTimes | None] = ContextVar("request_times", default=None)


def request_times() -> RequestTimes:
    """Of the request that is answered here; outside of one, times that nobody reads."""
    return _times.get() or RequestTimes()


@dataclass(frozen=True)
class TraceContext:
    """A request's place in a trace: W3C's header `traceparent`, level 1, and the ids that its log lines say."""

    traceparent: str
    fields: dict[str, str]

    @classmethod
    def of_caller(cls, headers: Headers) -> "TraceContext | None":
        """None where there is no such header, several, or one that is malformed: the specification has it ignored.

        >>> TraceContext.of_caller(Headers({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})).fields["parent_span_id"]
        'bbbbbbbbbbbbbbbb'
        """
        given = headers.getlist(TRACEPARENT)
        found = _TRACEPARENT.fullmatch(given[0]) if len(given) == 1 else None
        return None if found is None else cls(given[0], {"trace_id": found[1], "parent_span_id": found[2]})


def request_id_of(headers: Headers) -> str:
    """The caller's id if it gives one that cannot break a log line, else a new one."""
    given = headers.getlist(REQUEST_ID)
    return given[0] if len(given) == 1 and _SANE_ID.fullmatch(given[0]) else uuid.uuid4().hex


@dataclass(eq=False)
class Answered:
    """A request while it is answered, and afterwards.

    Attributes:
        method: of HTTP.
        path: in its one spelling.
        route: the path, or None where there is nothing at it.
        headers: of the request.
        request_id: the caller's, or a new one.
        start_s: when it came, of `time.perf_counter`; `start_ns` is the same since 1970.
        times: where its time went.
        trace: its place in a trace, if it has one.
        client: who asks, once that is known.
        status: of the answer; 0 as long as there is none.
        problem: why it was refused, if it was.
    """

    method: str
    path: str
    route: str | None
    headers: Headers
    request_id: str
    start_s: float = field(default_factory=time.perf_counter)
    start_ns: int = field(default_factory=time.time_ns)
    times: RequestTimes = field(default_factory=RequestTimes)
    trace: TraceContext | None = None
    client: str = ""
    status: int = 0
    problem: str = ""


class Tracer:
    """No spans of our own: the caller's ids are in the log, and go back in the answer."""

    @contextmanager
    def request(self, answered: Answered) -> Iterator[None]:
        """Give a request its place in a trace, and say how it went when the block ends."""
        answered.trace = TraceContext.of_caller(answered.headers)
        yield

    def close(self) -> None:
        """Send what is left."""


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
        headers, path = Headers(scope=scope), scope["path"]
        route = path if path in self._addresses.paths else None
        answered = Answered(scope["method"], path, route, headers, request_id_of(headers))
        scope[ANSWERED] = answered

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                said = MutableHeaders(scope=message)
                answered.status, answered.problem = message["status"], said.get(PROBLEM, "")
                _add_headers(said, answered)
            await send(message)

        traced = nullcontext() if path in OPERATION_PATHS else self._tracer.request(answered)
        with traced, _known(answered):
            await self._app(scope, receive, sending)


def _add_headers(headers: MutableHeaders, answered: Answered) -> None:
    headers[REQUEST_ID] = answered.request_id
    if answered.trace is not None:
        headers[TRACEPARENT] = answered.trace.traceparent
    times = answered.times
    if not times.tokens or answered.status != HTTPStatus.OK:
        return
    total_ms = _ms(time.perf_counter() - answered.start_s)
    values = (
        "cpu", total_ms, str(times.characters), str(times.tokens), total_ms, _ms(times.tokenization_s),
        _ms(_between(times.queued_at_s, times.started_at_s)), _ms(_between(times.started_at_s, times.ended_at_s)),
    )  # fmt: skip
    for name, value in zip(TIMING_HEADERS, values, strict=True):
        headers[name] = value


def _ms(seconds: float) -> str:
    return str(round(1000 * seconds))


@contextmanager
def _known(answered: Answered) -> Iterator[None]:
    """Let log lines and those who do the work know the request."""
    fields = {"request_id": answered.request_id} | ({} if answered.trace is None else answered.trace.fields)
    naming, timing = log_fields.set(fields), _times.set(answered.times)
    try:
        yield
    finally:
        log_fields.reset(naming)
        _times.reset(timing)
