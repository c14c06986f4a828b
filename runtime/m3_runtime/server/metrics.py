"""What Prometheus sees. Nothing here holds a text, or a label that clients choose."""

import os
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from m3_runtime.server.backend import Backend
from m3_runtime.version import __version__

CONTENT_TYPE = CONTENT_TYPE_LATEST
WORKERS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that tells prometheus_client where several processes share their counts."""

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class Metrics:
    """All counts of one worker; an `Observer` of its batcher."""

    registry: CollectorRegistry
    requests: Counter
    request_seconds: Histogram
    rejections: Counter
    texts: Counter
    tokens: Counter
    truncated: Counter
    queue_tokens: Gauge
    queue_texts: Gauge
    queue_seconds: Histogram
    tokenize_seconds: Histogram
    engine_seconds: Histogram
    batch_texts: Histogram
    batch_tokens: Histogram
    padding: Counter

    @classmethod
    def of(cls, backend: Backend) -> "Metrics":
        """Counts that start at zero."""
        r = CollectorRegistry()
        _note_build(r, backend)
        return cls(
            registry=r,
            requests=Counter("m3_requests", "Requests answered", ("route", "status"), registry=r),
            request_seconds=Histogram(
                "m3_request_seconds", "First byte of a request to last of its answer", ("route",), registry=r,
                buckets=_SECONDS,
            ),
            rejections=Counter("m3_rejections", "Requests refused", ("reason",), registry=r),
            texts=Counter("m3_texts", "Texts encoded", registry=r),
            tokens=Counter("m3_tokens", "Tokens encoded", registry=r),
            truncated=Counter("m3_truncated_texts", "Texts that were cut", registry=r),
            queue_tokens=_gauge("m3_queue_tokens", "Tokens that wait", r),
            queue_texts=_gauge("m3_queue_texts", "Texts that wait", r),
            queue_seconds=Histogram("m3_queue_seconds", "How long a text waited", registry=r, buckets=_SECONDS),
            tokenize_seconds=Histogram(
                "m3_tokenize_seconds", "Texts of a request to ids", registry=r, buckets=_SECONDS
            ),
            engine_seconds=Histogram("m3_engine_seconds", "A batch in the engine", registry=r, buckets=_SECONDS),
            batch_texts=Histogram("m3_batch_texts", "Texts of a batch", registry=r, buckets=_TEXTS),
            batch_tokens=Histogram("m3_batch_tokens", "Tokens of a batch", registry=r, buckets=_TOKENS),
            padding=Counter(
                "m3_padding_tokens", "Padding computed; 0, since a batch holds texts of one length", registry=r
            ),
        )  # fmt: skip

    def waiting(self, tokens: int, texts: int) -> None:
        """See `Observer.waiting`."""
        self.queue_tokens.set(tokens)
        self.queue_texts.set(texts)

    def queued(self, wait_s: float) -> None:
        """See `Observer.queued`."""
        self.queue_seconds.observe(wait_s)

    def ran(self, texts: int, tokens: int, duration_s: float) -> None:
        """See `Observer.ran`."""
        self.engine_seconds.observe(duration_s)
        self.batch_texts.observe(texts)
        self.batch_tokens.observe(tokens)
        self.texts.inc(texts)
        self.tokens.inc(tokens)

    def page(self) -> bytes:
        """The text that Prometheus reads: of all workers, where there are several."""
        if WORKERS_FOLDER not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)


def _gauge(name: str, meaning: str, registry: CollectorRegistry) -> Gauge:
    return Gauge(name, meaning, registry=registry, multiprocess_mode="livesum")


def _note_build(registry: CollectorRegistry, backend: Backend) -> None:
    labels = {
        "version": __version__,
        "variant": backend.variant.name,
        "engine": backend.variant.engine.value,
        "space_id": backend.bundle.manifest.space_id,
    }
    build = Gauge("m3_build_info", "What is served", tuple(labels), registry=registry, multiprocess_mode="livemax")
    build.labels(**labels).set(1)
