"""The OpenVINO engine: the fastest on x86, from the extra m3-runtime[openvino]."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.engines import FIRST_TOKEN, KEPT_TOKENS, RawOutputs, TokenBatch, is_dense_only
from m3_runtime.engines.no_telemetry import without_telemetry
from m3_runtime.errors import EngineError, EngineNotInstalledError
from m3_runtime.manifest import Head

Tokens = NDArray[np.int64]

# One stream computes at a time; a second request lets another thread hand in and copy out meanwhile. Every
# request keeps buffers of the largest batch that it has seen, so there are no more of them.
_MAX_REQUESTS = 2


class OpenVinoEngine:
    """One compiled model and a small pool of infer requests, which makes `run` thread-safe."""

    def __init__(self, model: Any, all_tokens: Tokens | None) -> None:
        """A compiled model and, if it has the input `kept_tokens`, the value that stands for all tokens."""
        self._model = model
        self._all_tokens = all_tokens
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
            model = core.read_model(graph)
            all_tokens = _open_kept_tokens(model)
            return cls(core.compile_model(model, "CPU", config), all_tokens)
        except Exception as error:  # OpenVINO raises bare RuntimeError and more
            raise EngineError(f"OpenVINO cannot load {graph.name!r}: {error}") from error

    def run(self, batch: TokenBatch, heads: Sequence[Head]) -> RawOutputs:
        """See `Engine.run`."""
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self._all_tokens is not None:
            inputs[KEPT_TOKENS] = FIRST_TOKEN if is_dense_only(heads) else self._all_tokens
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


def _open_kept_tokens(model: Any) -> Tokens | None:
    """Make an input of the constant `kept_tokens`; the value that it had, or None if the model has none.

    It lies in the file as a constant because OpenVINO has no inputs with defaults: whoever compiles the file elsewhere
    sees two inputs and gets every token.
    """
    from openvino import opset13

    constants = (node for node in model.get_ordered_ops() if node.get_friendly_name() == KEPT_TOKENS)
    constant = next((node for node in constants if node.get_type_name() == "Constant"), None)
    if constant is None:
        return None
    all_tokens = np.array(constant.data, dtype=np.int64)
    parameter = opset13.parameter(list(all_tokens.shape), np.int64, name=KEPT_TOKENS)
    parameter.output(0).set_names({KEPT_TOKENS})
    for reader in constant.output(0).get_target_inputs():
        reader.replace_source_output(parameter.output(0))
    model.add_parameters([parameter])
    model.validate_nodes_and_infer_types()
    return all_tokens
