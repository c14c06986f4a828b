"""The OpenVINO engine: the fastest on x86, from the extra m3-runtime[openvino]."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from m3_runtime.engines import RawOutputs, TokenBatch
from m3_runtime.engines.no_telemetry import without_telemetry
from m3_runtime.errors import EngineError, EngineNotInstalledError
from m3_runtime.manifest import Head

# One stream computes at a time; a second request lets another thread hand in and copy out meanwhile. Every
# request keeps buffers of the largest batch that it has seen, so there are no more of them.
_MAX_REQUESTS = 2


class OpenVinoEngine:
    """One compiled model and a small pool of infer requests, which makes `run` thread-safe."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._slots = threading.BoundedSemaphore(_MAX_REQUESTS)
        self._idle: deque[Any] = deque()

    @classmethod
    def open(cls, graph: Path, properties: Mapping[str, str], threads: int) -> "OpenVinoEngine":
        """Compile an IR; its weights are mapped, not read.

        Args:
            graph: the .xml file; the .bin lies beside it.
            properties: the variant's compile properties.
            threads: threads of one run.

        Raises:
            EngineNotInstalledError: openvino is missing.
            EngineError: OpenVINO cannot load or compile the graph.
        """
        try:
            with without_telemetry():
                import openvino
        except ImportError as error:
            raise EngineNotInstalledError(
                f'openvino cannot be imported ({error}); install it: pip install "m3-runtime[openvino]"'
            ) from error
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            **properties,
        }
        try:
            core = openvino.Core()
            return cls(core.compile_model(core.read_model(graph), "CPU", config))
        except Exception as error:  # OpenVINO raises bare RuntimeError and more
            raise EngineError(f"OpenVINO cannot load {graph.name!r}: {error}") from error

    def run(self, batch: TokenBatch, heads: Sequence[Head]) -> RawOutputs:
        """See `Engine.run`."""
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        with self._request() as request:
            try:
                request.infer(inputs, share_inputs=True)
                # Found by name: the order of outputs is the exporter's business. Copied: the request's memory
                # is written over by its next run.
                arrays = {
                    head.output_name: np.array(request.get_tensor(head.output_name).data, dtype=np.float32)
                    for head in heads
                }
            except Exception as error:
                shape = "x".join(map(str, batch.input_ids.shape))
                raise EngineError(f"OpenVINO failed on a batch of {shape} tokens: {error}") from error
        return RawOutputs(**arrays)

    def close(self) -> None:
        """See `Engine.close`."""
        self._model = None
        self._idle.clear()

    @contextmanager
    def _request(self) -> Iterator[Any]:
        """An infer request of our own for a while: an idle one, or a new one below the limit."""
        model = self._model
        if model is None:
            raise EngineError("the engine is closed")
        with self._slots:
            try:
                request = self._idle.pop()
            except IndexError:
                request = model.create_infer_request()
            try:
                yield request
            finally:
                if self._model is not None:
                    self._idle.append(request)
