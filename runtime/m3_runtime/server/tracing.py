"""What is known about each request from outside: its ids, the trace it belongs to, and where its time went.

A plain ASGI middleware around all others, so that refusals have ids too. Spans are made by OpenTelemetry's API, which
takes over the caller's ids and does nothing else unless traces are sent; its SDK, the extra `otel`, sends them.
"""

import os
import re
import time
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib import import_module

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3_runtime.errors import ExtraNotInstalledError, InputError
from m3_runtime.server.addresses import OPERATION_PATHS, Addresses
from m3_runtime.server.answers import PROBLEM
from m3_runtime.server.logs import log_fields
from m3_runtime.version import __version__

REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
RECORD = "m3.record"
"""Where the middlewares behind this one find a request's `RequestRecord` in the scope."""

TIMING_HEADERS = (
    "x-compute-type", "x-compute-time", "x-compute-characters", "x-compute-tokens", "x-total-time",
    "x-tokenization-time", "x-queue-time", "x-inference-time",
)  # fmt: skip
"""What text-embeddings-inference says about an answer; times are whole milliseconds."""

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_W3C = TraceContextTextMapPropagator()

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_FLUSH_MS = 2000
"""At the end; what cannot be sent meanwhile is given up."""


@dataclass
class RequestTimes:
    """Where a request's time went, filled in by those who do the work. Moments are of `time.perf_counter`.

    Characters and tokens are those of its texts, both special tokens included. It is queued and started when its first
    text is, and has ended when its last text has.
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


_times: ContextVar[RequestTimes | None] = ContextVar("request_times", default=None)


def request_times() -> RequestTimes:
    """The times of the request that is being answered; outside of one, an object that is thrown away."""
    return _times.get() or RequestTimes()


def request_id_of(headers: Headers) -> str:
    """The caller's id if it gives one that cannot break a log line, else a new one."""
    given = headers.getlist(REQUEST_ID)
    return given[0] if len(given) == 1 and _SANE_ID.fullmatch(given[0]) else uuid.uuid4().hex


@dataclass(eq=False)
class RequestRecord:
    """What is known about a request while it is answered, and afterwards.

    The path is the canonical one; `route` is None where there is nothing at it. `start_s` is of `time.perf_counter`,
    `start_ns` the same since 1970. `status` is 0 as long as there is no answer.
    """

    method: str
    path: str
    route: str | None
    headers: Headers
    request_id: str
    start_s: float = field(default_factory=time.perf_counter)
    start_ns: int = field(default_factory=time.time_ns)
    times: RequestTimes = field(default_factory=RequestTimes)
    client: str = ""
    status: int = 0
    problem: str = ""


class RequestTracing:
    """Gives each request its ids, takes over its trace, and says in the answer where its time went."""

    def __init__(self, app: ASGIApp, tracer: trace.Tracer, addresses: Addresses) -> None:
        """Wrap an app; `tracer` makes the spans."""
        self._app = app
        self._tracer = tracer
        self._addresses = addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = self._addresses.canonical(scope)
        headers, path = Headers(scope=scope), scope["path"]
        route = path if path in self._addresses.paths else None
        record = RequestRecord(scope["method"], path, route, headers, request_id_of(headers))
        scope[RECORD] = record
        span = trace.INVALID_SPAN if path in OPERATION_PATHS else self._span(record)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                said = MutableHeaders(scope=message)
                record.status, record.problem = message["status"], said.get(PROBLEM, "")
                _add_headers(said, record, span)
            await send(message)

        naming, timing = log_fields.set(_ids(record, span)), _times.set(record.times)
        try:
            await self._app(scope, receive, sending)
        finally:
            log_fields.reset(naming)
            _times.reset(timing)
            if span.is_recording():
                self._end(span, record)

    def _span(self, record: RequestRecord) -> trace.Span:
        """A span below the caller's; where traces are off, only what the caller says."""
        is_one = len(record.headers.getlist(TRACEPARENT)) == 1
        context = _W3C.extract(record.headers if is_one else {})
        if isinstance(self._tracer, trace.NoOpTracer):  # which in older releases knows no caller
            return trace.get_current_span(context)
        return self._tracer.start_span(
            record.method,
            context,
            trace.SpanKind.SERVER,
            {"http.request.method": record.method, "m3.request_id": record.request_id},
            start_time=record.start_ns,
        )

    def _end(self, span: trace.Span, record: RequestRecord) -> None:
        """Say how a request went, and where its time went."""
        times = record.times
        if record.route is not None:
            span.update_name(f"{record.method} {record.route}")
            span.set_attribute("http.route", record.route)
        span.set_attribute("http.response.status_code", record.status)
        if record.status >= 500:
            span.set_status(trace.Status(trace.StatusCode.ERROR))
        if times.tokens:
            span.set_attributes({"m3.tokens": times.tokens, "m3.characters": times.characters})
        queued, started = times.queued_at_s, times.started_at_s
        parts = (
            ("tokenize", None if queued is None else queued - times.tokenization_s, queued),
            ("queue", queued, started),
            ("inference", started, times.ended_at_s),
        )
        within = trace.set_span_in_context(span)
        for name, start_s, end_s in parts:
            if start_s is not None and end_s is not None:
                part = self._tracer.start_span(name, within, start_time=_ns(record, start_s))
                part.end(_ns(record, end_s))
        span.end()


def _ids(record: RequestRecord, span: trace.Span) -> dict[str, str]:
    """What log lines say of a request."""
    ids, context = {"request_id": record.request_id}, span.get_span_context()
    if context.is_valid:
        ids["trace_id"] = trace.format_trace_id(context.trace_id)
        ids["parent_span_id" if context.is_remote else "span_id"] = trace.format_span_id(context.span_id)
    return ids


def _ns(record: RequestRecord, at_s: float) -> int:
    """A moment of `time.perf_counter` as nanoseconds since 1970."""
    return record.start_ns + round(1e9 * (at_s - record.start_s))


def _add_headers(headers: MutableHeaders, record: RequestRecord, span: trace.Span) -> None:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, trace.set_span_in_context(span))
    if TRACEPARENT in carrier:
        headers[TRACEPARENT] = carrier[TRACEPARENT]
    headers[REQUEST_ID] = record.request_id
    times = record.times
    if not times.tokens or record.status != HTTPStatus.OK:
        return
    total_ms = _ms(time.perf_counter() - record.start_s)
    values = (
        "cpu", total_ms, str(times.characters), str(times.tokens), total_ms, _ms(times.tokenization_s),
        _ms(_between(times.queued_at_s, times.started_at_s)), _ms(_between(times.started_at_s, times.ended_at_s)),
    )  # fmt: skip
    for name, value in zip(TIMING_HEADERS, values, strict=True):
        headers[name] = value


def _between(start_s: float | None, end_s: float | None) -> float:
    return 0.0 if start_s is None or end_s is None else end_s - start_s


def _ms(seconds: float) -> str:
    return str(round(1000 * seconds))


def open_tracer(otlp_endpoint: str | None) -> tuple[trace.Tracer, Callable[[], None]]:
    """What makes spans, and what sends the last of them: to an endpoint that the option or the environment names.

    OpenTelemetry's variables mean what they mean everywhere: OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES,
    OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and the others that its library reads.

    Raises:
        ExtraNotInstalledError: as `check_traces`.
        InputError: as `check_traces`.
    """
    if not check_traces(otlp_endpoint):
        return trace.NoOpTracer(), lambda: None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    url = None if otlp_endpoint is None else f"{otlp_endpoint.rstrip('/')}/v1/traces"
    ours = Resource({"service.name": "m3-runtime", "service.version": __version__})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))

    def close() -> None:
        provider.force_flush(_FLUSH_MS)
        provider.shutdown()

    return provider.get_tracer("m3_runtime", __version__), close


def check_traces(otlp_endpoint: str | None) -> bool:
    """Whether traces are wanted: off unless an endpoint is named.

    Raises:
        ExtraNotInstalledError: they are, and what sends them is not installed.
        InputError: OpenTelemetry's variables ask for a protocol other than HTTP with protobuf.
    """
    by = "--otlp-endpoint" if otlp_endpoint else next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    is_off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if by is None or is_off or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    for name in _PROTOCOLS:
        if (protocol := os.environ.get(name) or _PROTOCOL) != _PROTOCOL:
            raise InputError(f"{name} must be {_PROTOCOL} or unset, got {protocol!r}: traces are sent by HTTP alone")
    for module in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"):
        try:
            import_module(module)
        except ImportError as error:
            raise ExtraNotInstalledError(
                f"{by} asks for traces and {module.rpartition('.')[0]} is not installed; install what sends them: "
                'pip install "m3-runtime[serve,otel]"'
            ) from error
    return True
