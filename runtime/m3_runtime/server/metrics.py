"""What Prometheus sees: no text, and no label that clients choose."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
    start_http_server,
)

from m3_runtime.engines import TokenBatch
from m3_runtime.errors import InputError
from m3_runtime.opened_model import OpenedModel
from m3_runtime.version import __version__

_log = logging.getLogger("m3_runtime.server")

WORKERS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that tells prometheus_client where several processes share their counts."""

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TEXTS = (1, 2, 4, 8, 16, 32, 64)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


class Metrics:
    """All counts of one worker."""

    def __init__(self, models: Sequence[OpenedModel]) -> None:
        """Counts that start at zero, and what the models are."""
        self.registry = r = CollectorRegistry()
        self.requests = Counter("m3_requests", "Requests answered", ("route", "status"), registry=r)
        self.request_seconds = Histogram(
            "m3_request_seconds", "First byte of a request to last of its answer", ("route",), registry=r,
            buckets=_SECONDS,
        )  # fmt: skip
        self.rejections = Counter("m3_rejections", "Requests refused", ("reason",), registry=r)
        self.texts = Counter("m3_texts", "Texts encoded, and pairs scored", registry=r)
        self.tokens = Counter("m3_tokens", "Tokens of these", registry=r)
        self.pairs = Counter("m3_pairs", "Pairs that the reranker scored", registry=r)
        self.reused_texts = Counter("m3_reused_texts", "Texts whose vectors an unanswered request left", registry=r)
        self.padding = Counter("m3_padding_tokens", "Padding computed beside the tokens", registry=r)
        self.truncated = Counter("m3_truncated_texts", "Texts that were cut", registry=r)
        self.out_of_vocabulary = Counter(
            "m3_out_of_vocabulary_texts", "Texts with a piece that the bundle dropped", registry=r
        )
        self.queue_tokens = Gauge("m3_queue_tokens", "Tokens that wait", registry=r, multiprocess_mode="livesum")
        self.queue_texts = Gauge("m3_queue_texts", "Texts that wait", registry=r, multiprocess_mode="livesum")
        self.queue_seconds = Histogram("m3_queue_seconds", "How long a text waited", registry=r, buckets=_SECONDS)
        self.tokenize_seconds = Histogram(
            "m3_tokenize_seconds", "Texts of a request to ids", registry=r, buckets=_SECONDS
        )
        self.engine_seconds = Histogram("m3_engine_seconds", "A batch in the engine", registry=r, buckets=_SECONDS)
        self.batch_texts = Histogram("m3_batch_texts", "Texts of a batch", registry=r, buckets=_TEXTS)
        self.batch_tokens = Histogram("m3_batch_tokens", "Tokens of a batch", registry=r, buckets=_TOKENS)
        names = ("version", "variant", "engine", "space_id")
        build = Gauge("m3_build_info", "What is served", names, registry=r, multiprocess_mode="livemax")
        for model in models:
            build.labels(__version__, model.variant.name, model.variant.engine.value, model.space_id).set(1)

    def count_padding(self, batch: TokenBatch) -> None:
        """Count what a batch computes for nothing: rows of packed texts are rarely of one length."""
        self.padding.inc(batch.attention_mask.size - int(np.count_nonzero(batch.attention_mask)))

    def page(self) -> bytes:
        """The text that Prometheus reads: of all workers, where there are several."""
        return generate_latest(self.registry if WORKERS_FOLDER not in os.environ else all_workers())


def all_workers() -> CollectorRegistry:
    """What several processes count together."""
    together = CollectorRegistry()
    multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
    return together


@contextmanager
def metrics_port(host: str, port: int, registry: CollectorRegistry) -> Iterator[None]:
    """Answer /metrics at a port of its own, from a thread of its own, while the block runs; no key is needed.

    Raises:
        InputError: the port cannot be listened on.
    """
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}:{port}: {error}; choose another --metrics-port") from error
    _log.info("metrics_port", extra={"url": f"http://{host}:{server.server_port}/metrics"})
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
