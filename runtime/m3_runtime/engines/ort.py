"""The onnxruntime engine: runs everywhere, and is the default dependency."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from m3_runtime.bundle.manifest import LEAST_TOKENS, EngineName, Head, Variant
from m3_runtime.cpu import cpu_info
from m3_runtime.engines import (
    FLOAT_PRECISION,
    KEPT_TOKENS,
    POOLED_HEADS,
    Opening,
    RawOutputs,
    TokenBatch,
    batch_failed,
    is_pooled_only,
)
from m3_runtime.engines.no_telemetry import engine_package
from m3_runtime.engines.resident import trim_heap
from m3_runtime.errors import BundleFormatError, EngineError

# Properties with these beginnings are onnxruntime's own session configuration keys, handed over as they are.
_CONFIG_PREFIXES = ("session.", "mlas.", "optimization.")
_ERRORS_ONLY = 3

# What a run took of the arena is given back when it is over, if the run's options ask for it. (Without the arena memory
# is no smaller between runs, and twice as large in them: the C library keeps what is freed.)
_SHRINKING = ("memory.enable_memory_arena_shrinkage", "cpu:0")


class OrtEngine:
    """One onnxruntime session. `run` is thread-safe, as sessions are.

    A run always computes every head: onnxruntime's `only_execute_path_to_fetches` skips nothing in current
    releases (measured). The heads cost under 1 % of the encoder, and an output that is not asked for is not
    copied. A dense-only run of a graph with `kept_tokens` computes them, and the last layer, for one token.
    """

    packed_tokens = 0  # its products do not keep the order of keys for every shape

    def __init__(self, session: Any, opening: Opening, shrinking: Any) -> None:
        """Take over a session; `shrinking` are the options of runs after which memory goes back to the system."""
        self.streams = opening.streams
        self._shrinking = shrinking
        self._is_low_memory = opening.low_memory
        self._largest_tokens = self._started = 0
        self._session = session
        self._keeps_tokens = any(value.name == KEPT_TOKENS for value in session.get_overridable_initializers())

    @classmethod
    def open(cls, graph: Path, variant: Variant, threads: int, opening: Opening) -> "OrtEngine":
        """Load a graph, with external data next to it; `low_memory` keeps no memory between runs.

        Raises:
            EngineNotInstalledError: onnxruntime is missing.
            BundleFormatError: a property that this engine does not know.
            EngineError: onnxruntime cannot load the graph.
        """
        onnxruntime = engine_package(EngineName.ONNXRUNTIME)
        options = session_options(
            variant.properties, threads, is_int8=variant.precision != FLOAT_PRECISION, streams=opening.streams
        )
        opening.on_busy()
        try:
            session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the package's errors have no common base but Exception
            raise EngineError(f"onnxruntime cannot load {graph.name!r}: {error}") from error
        trim_heap()  # converting and packing weights leaves up to 200 MB behind
        shrinking = onnxruntime.RunOptions()
        shrinking.add_run_config_entry(*_SHRINKING)
        return cls(session, opening, shrinking)

    def run(self, batch: TokenBatch, heads: Collection[Head]) -> RawOutputs:
        """See `Engine.run`."""
        session = self._session
        if session is None:
            raise EngineError("the engine is closed")
        names = [head.output_name for head in heads]
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self._keeps_tokens and is_pooled_only(heads):
            inputs[KEPT_TOKENS] = np.array([batch.leading])
        self._started += 1
        try:
            outputs = session.run(names, inputs, self._shrinking if self._is_low_memory else None)
            # Copied: they are in the arena, and one that is kept would keep a whole region of it.
            arrays = [np.array(output) for output in outputs]
        except Exception as error:
            raise batch_failed("onnxruntime", batch, error) from error
        self._largest_tokens = max(self._largest_tokens, batch.input_ids.size)
        if self._is_low_memory:
            trim_heap()
        return RawOutputs(**dict(zip(names, arrays, strict=True)))

    def rest(self, least_tokens: int) -> None:
        """See `Engine.rest`.

        The arena shrinks at the end of a run only, so there is one of a few tokens. Its output is outside the arena:
        one would keep a whole region.
        """
        session = self._session
        if session is None or self._is_low_memory or self._largest_tokens < max(1, least_tokens):
            return
        largest, started, self._largest_tokens = self._largest_tokens, self._started, 0
        ids = np.zeros((1, LEAST_TOKENS), np.int64)
        with suppress(Exception):  # whatever it is, the next run will say it
            binding = session.io_binding()
            binding.bind_cpu_input("input_ids", ids)
            binding.bind_cpu_input("attention_mask", ids + 1)
            names = {head.output_name for head in POOLED_HEADS}
            (pooled,) = (value for value in session.get_outputs() if value.name in names)
            vector = np.empty((1, pooled.shape[-1]), np.float32)
            binding.bind_output(pooled.name, "cpu", 0, np.float32, vector.shape, vector.ctypes.data)
            session.run_with_iobinding(binding, self._shrinking)
        trim_heap()
        if self._started != started:  # a run that went on meanwhile held its regions; there is more to give back
            self._largest_tokens = max(self._largest_tokens, largest)

    def close(self) -> None:
        """See `Engine.close`."""
        self._session = None


def session_options(
    properties: Mapping[str, str], threads: int, *, is_int8: bool, streams: int = 1
) -> Any:  # onnxruntime.SessionOptions, which may not be installed
    """All options that a graph is loaded with; `properties` are the variant's session configuration.

    Of the `threads` of all runs together each of the `streams` brings the one that calls it; all share the rest.

    Raises:
        EngineNotInstalledError: onnxruntime is missing.
        BundleFormatError: a property that this engine does not know.
    """
    options = engine_package(EngineName.ONNXRUNTIME).SessionOptions()
    options.intra_op_num_threads = threads - streams + 1
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # one is kept for every shape, for ever, and saves no time that was measured
    options.log_severity_level = _ERRORS_ONLY
    for key, value in session_config(properties, is_int8=is_int8).items():
        options.add_session_config_entry(key, value)
    return options


def session_config(properties: Mapping[str, str], *, is_int8: bool) -> dict[str, str]:
    """Session configuration: what we choose for a CPU server, then what the variant asks for.

    Raises:
        BundleFormatError: a property that is not a session configuration key.
    """
    # Spinning threads win little here and take whole cores away from the server around us. Weights stay out of the
    # arena: regions that hold some could never be given back.
    config = {"session.intra_op.allow_spinning": "0", "session.use_device_allocator_for_initializers": "1"}
    cpu = cpu_info()
    if is_int8 and cpu.is_x86 and not cpu.has_int8_dot:
        # Without VNNI the u8 x s8 multiply-add saturates at 16 bits; this makes
        # onnxruntime use u8 x u8 instead.
        config["session.x64quantprecision"] = "1"
    for key, value in properties.items():
        if not key.startswith(_CONFIG_PREFIXES):
            raise BundleFormatError(
                f"the variant has the property {key!r}, which onnxruntime does not know; "
                f"expected keys that begin with {', '.join(_CONFIG_PREFIXES)}"
            )
        config[key] = value
    return config
