"""Traces by OpenTelemetry's own library, the extra `otel`: each request a span with tokenization, queue and inference.

Off unless an endpoint is named. OpenTelemetry's variables mean what they mean everywhere: OTEL_SERVICE_NAME,
OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and the others that its library reads.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from m3_runtime.errors import ExtraNotInstalledError, InputError
from m3_runtime.server.tracing import TRACEPARENT, Answered, TraceContext, Tracer
from m3_runtime.version import __version__

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_FLUSH_MS = 2000


def open_tracer(otlp_endpoint: str | None) -> Tracer:
    """OpenTelemetry where an endpoint is named, by the option or by OpenTelemetry's variables.

    Raises:
        ExtraNotInstalledError: as `check_traces`.
        InputError: as `check_traces`.
    """
    return _OpenTelemetry(otlp_endpoint) if check_traces(otlp_endpoint) else Tracer()


def check_traces(otlp_endpoint: str | None) -> bool:
    """Whether traces are wanted.

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
    for package in ("opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        if not _is_installed(package):
            raise ExtraNotInstalledError(
                f"{by} asks for traces and {package} is not installed; install what sends them: "
                'pip install "m3-runtime[serve,otel]"'
            )
    return True


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ImportError:  # nor is what it belongs to
        return False


class _OpenTelemetry(Tracer):
    """Sends a span for every request."""

    def __init__(self, otlp_endpoint: str | None) -> None:
        """Send to an endpoint, a base URL as in OTEL_EXPORTER_OTLP_ENDPOINT; None is what the variables say."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        url = None if otlp_endpoint is None else f"{otlp_endpoint.rstrip('/')}/v1/traces"
        ours = Resource({"service.name": "m3-runtime", "service.version": __version__})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer("m3_runtime", __version__)

    @contextmanager
    def request(self, answered: Answered) -> Iterator[None]:
        """See `Tracer.request`."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        is_continued = TraceContext.of_caller(answered.headers) is not None
        carrier = {name: answered.headers.get(name, "") for name in (TRACEPARENT, "tracestate")} if is_continued else {}
        span = self._tracer.start_span(
            answered.method,
            TraceContextTextMapPropagator().extract(carrier),
            SpanKind.SERVER,
            {"http.request.method": answered.method, "m3.request_id": answered.request_id},
            start_time=answered.start_ns,
        )
        context = span.get_span_context()
        trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        traceparent = f"00-{trace_id}-{span_id}-{context.trace_flags:02x}"
        answered.trace = TraceContext(traceparent, {"trace_id": trace_id, "span_id": span_id})
        try:
            yield
        finally:
            self._end(span, answered)

    def _end(self, span: Any, answered: Answered) -> None:
        """Say how a request went, and where its time went."""
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        times = answered.times
        if answered.route is not None:
            span.update_name(f"{answered.method} {answered.route}")
            span.set_attribute("http.route", answered.route)
        span.set_attribute("http.response.status_code", answered.status)
        if answered.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        if times.tokens:
            span.set_attributes({"m3.tokens": times.tokens, "m3.characters": times.characters})
        queued, started = times.queued_at_s, times.started_at_s
        parts = (
            ("tokenize", None if queued is None else queued - times.tokenization_s, queued),
            ("queue", queued, started),
            ("inference", started, times.ended_at_s),
        )
        within = set_span_in_context(span)
        for name, start_s, end_s in parts:
            if start_s is not None and end_s is not None:
                part = self._tracer.start_span(name, within, start_time=_ns(answered, start_s))
                part.end(_ns(answered, end_s))
        span.end()

    def close(self) -> None:
        """See `Tracer.close`; what cannot be sent within two seconds is given up."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()


def _ns(answered: Answered, at_s: float) -> int:
    """A moment of `time.perf_counter` as nanoseconds since 1970."""
    return answered.start_ns + round(1e9 * (at_s - answered.start_s))
