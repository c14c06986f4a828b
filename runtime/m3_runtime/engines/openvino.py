"""The OpenVINO engine: the fastest on x86, from the extra m3-runtime[openvino]."""

import io
import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import EngineName, Head, Variant
from m3_runtime.cpu import cpu_info
from m3_runtime.engines import (
    KEPT_TOKENS,
    PACKED_TEXTS,
    PADDED_ROWS,
    POOLED_HEADS,
    WHOLE_ROWS,
    Opening,
    RawOutputs,
    TokenBatch,
    batch_failed,
    is_pooled_only,
)
from m3_runtime.engines.compiled_cache import CompiledForm, keep_form, kept_form
from m3_runtime.engines.no_telemetry import engine_package
from m3_runtime.engines.resident import MappedFiles, mapping, trim_heap
from m3_runtime.errors import BundleFormatError, EngineError

_log = logging.getLogger("m3_runtime")

Tokens = NDArray[np.int64]

# In addition to those that compute, one request to a stream: another thread may hand in and copy out meanwhile. Every
# request keeps buffers of the largest batch that it has seen, so there are no more of them.
_SPARE_REQUESTS = 1

# OpenVINO keeps what it made for a shape, megabytes each, and 5000 of them by default. Batches have ever new
# shapes, so that memory would grow for hours. Making it again costs nothing that could be measured.
_KEPT_FOR_SHAPES = 64

_PRECISION = "INFERENCE_PRECISION_HINT"

_WITHOUT_WEIGHTS = {"CACHE_MODE": "OPTIMIZE_SIZE"}
_WHERE_READ = "WeightlessCacheAttribute"
_LEAST_LEFT_OUT_BYTES = 2**16


# Of the optional inputs; -1 is any length.
_OPTIONAL_SHAPES = {KEPT_TOKENS: [1], PACKED_TEXTS: [-1, 2], WHOLE_ROWS: [-1], PADDED_ROWS: [-1]}


_busy: set[object] = set()  # one for each run under way
_lost: set[object] = (
    set()
)  # in a child that was forked meanwhile: OpenVINO's thread pool counts on threads it has not got


def _forked() -> None:
    _lost.update(_busy)
    _busy.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)


class OpenVinoEngine:
    """One compiled model and a small pool of infer requests, which makes `run` thread-safe."""

    def __init__(
        self,
        model: Any,
        defaults: Mapping[str, Tokens],
        packed_tokens: int,
        weights: MappedFiles,
        opening: Opening,
    ) -> None:
        """Take over a compiled model, its optional inputs' defaults, and the files that it has mapped."""
        self.streams = opening.streams
        self.packed_tokens = packed_tokens
        self._model = model
        self._defaults = dict(defaults)
        self._weights = weights
        self._runs = itertools.count(1)
        self._takes_padded = opening.takes_padded
        self._requests = opening.streams + (0 if opening.low_memory else _SPARE_REQUESTS)
        self._slots = threading.BoundedSemaphore(self._requests)
        self._largest_tokens = 0
        self._idle: deque[Any] = deque()

    @classmethod
    def open(cls, graph: Path, variant: Variant, threads: int, opening: Opening) -> "OpenVinoEngine":
        """Compile an IR; its weights are mapped, not read. They are a .bin file, by default called as the graph is.

        `low_memory` keeps the buffers of one request, not of two; the compiled form is taken from `cache_file`, or kept
        there.

        Raises:
            EngineNotInstalledError: openvino is missing.
            BundleFormatError: the variant packs, by its manifest, and its graph cannot.
            EngineError: OpenVINO cannot load or compile the graph, or would crash in this process.
        """
        if _lost:
            raise EngineError(
                "this process was forked while OpenVINO computed, and OpenVINO may crash in it; "
                "fork before you encode, or start workers with spawn"
            )
        openvino = engine_package(EngineName.OPENVINO)
        config = compile_properties(variant.properties, threads, opening.streams)
        folder = graph.parents[variant.graph.count("/")]
        weights = next((folder / path for path in variant.files if path.endswith(".bin")), graph.with_suffix(".bin"))
        try:
            with mapping(graph.parent) as mapped:
                model, defaults = _load(openvino.Core(), graph, weights, config, opening, openvino.get_version())
        except Exception as error:  # OpenVINO raises bare RuntimeError and more
            raise EngineError(f"OpenVINO cannot load {graph.name!r}: {error}") from error
        if variant.packed_tokens and PACKED_TEXTS not in defaults:
            raise BundleFormatError(f"{graph.name!r} cannot pack texts, but its variant says so; export it again")
        return cls(model, defaults, variant.packed_tokens, mapped, opening)

    def run(self, batch: TokenBatch, heads: Collection[Head]) -> RawOutputs:
        """See `Engine.run`."""
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **self._defaults}
        if KEPT_TOKENS in inputs and is_pooled_only(heads):
            inputs[KEPT_TOKENS] = np.array([batch.leading])
        if PACKED_TEXTS in inputs:
            inputs |= batch.packing()
            if inputs[PADDED_ROWS].size and not self._takes_padded:
                raise EngineError("the engine was opened for rows of one length and packed rows; these are padded")
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
                raise batch_failed("OpenVINO", batch, error) from error
        self._largest_tokens = max(self._largest_tokens, batch.input_ids.size)
        raw = RawOutputs(**arrays)
        _check_rows(batch, raw)
        return raw

    def rest(self, least_tokens: int) -> None:
        """See `Engine.rest`. Nothing is given back while a run goes on."""
        if self._model is None or self._largest_tokens < max(1, least_tokens):
            return
        taken = [self._slots.acquire(blocking=False) for _ in range(self._requests)]
        try:
            if all(taken):
                self._largest_tokens = 0
                self._idle.clear()
                with suppress(Exception):  # whatever it is, the next run will say it
                    self._model.release_memory()
                self._weights.let_go()
                trim_heap()
        finally:
            for _ in range(sum(taken)):
                self._slots.release()

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
            _busy.add(run := object())
            try:
                yield request
            finally:
                _busy.discard(run)
                if self._model is not None:
                    self._idle.append(request)
                    count = next(self._runs)
                    if count & (count - 1) == 0:  # after runs 1, 2, 4, 8 …: pages of weights that were packed can go,
                        self._weights.let_go()  # and new shapes may pack again
                        trim_heap()


def _check_rows(batch: TokenBatch, raw: RawOutputs) -> None:
    """OpenVINO 2026.4 loses errors that come up while it infers shapes, and gives what the last run has left."""
    texts = len(batch.attention_mask) if batch.packed_texts is None else len(batch.packed_texts)
    for head in Head:
        values = getattr(raw, head.output_name)
        rows = texts if head in POOLED_HEADS else len(batch.attention_mask)
        if values is not None and len(values) != rows:
            raise EngineError(f"OpenVINO gave {len(values)} rows where {rows} were expected; update openvino")


def compile_properties(properties: Mapping[str, str], threads: int, streams: int = 1) -> dict[str, str]:
    """All properties that a graph is compiled with: what we choose for a CPU server, then what the variant asks for.

    bf16 runs as f32, which is nearer to exact, on a processor that does not multiply it: there OpenVINO would round as
    bf16 does and compute in float all the same. Without a precision hint a variant computes in f32. `threads` are those
    of all runs together.
    """
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": str(streams),
        "INFERENCE_NUM_THREADS": str(threads),
        "ENABLE_CPU_PINNING": "NO",  # two processes would be pinned to the same cores
        "CPU_RUNTIME_CACHE_CAPACITY": str(_KEPT_FOR_SHAPES),
        _PRECISION: "f32",
        **properties,
    }
    if config[_PRECISION] == "bf16" and not cpu_info().has_bf16:
        _say_once(f"this processor ({cpu_info().name}) does not multiply bf16; what is bf16 in the variant runs as f32")
        config[_PRECISION] = "f32"
    return config


@cache
def _say_once(message: str) -> None:
    """Each text once in the life of the process. Not a warning: nothing is lost but speed, and none can be had."""
    _log.info("%s", message)


def _load(
    core: Any, graph: Path, weights: Path, config: Mapping[str, str], opening: Opening, release: str
) -> tuple[Any, Mapping[str, Tokens]]:
    """The compiled graph and its optional inputs' defaults; from the cache file if there is one with a form in it."""
    file = opening.cache_file
    if file is not None and (form := kept_form(file, release)) is not None:
        opening.on_busy()
        return _imported(core, form, weights, config), form.defaults
    model = core.read_model(graph, weights)
    defaults = _open_optional_inputs(model)
    if not opening.takes_padded:
        _drop_padded_attention(model)
    if file is None:
        opening.on_busy()
        return core.compile_model(model, "CPU", config), defaults
    _keep_small_constants(model)
    opening.on_busy()
    compiled = core.compile_model(model, "CPU", {**config, **_WITHOUT_WEIGHTS})
    form = CompiledForm(compiled.export_model().getvalue(), defaults)
    try:
        is_same = _answer(compiled, defaults) == _answer(_imported(core, form, weights, config), defaults)
    except RuntimeError:
        is_same = False
    if is_same:
        keep_form(file, form, release)
    else:
        _log.warning(
            "OpenVINO %s reads its form of %s otherwise than it wrote it; nothing is kept", release, graph.name
        )
    return compiled, defaults


def _imported(core: Any, form: CompiledForm, weights: Path, config: Mapping[str, str]) -> Any:
    where = {"WEIGHTS_PATH": str(weights)}
    return core.import_model(io.BytesIO(form.export), "CPU", {**config, **_WITHOUT_WEIGHTS, **where})


def _answer(compiled: Any, defaults: Mapping[str, Tokens]) -> list[bytes]:
    """What a compiled graph makes of a few tokens, to the bit."""
    ids = np.arange(4, 16).reshape(2, 6)
    batch = TokenBatch(ids, np.ones_like(ids))
    inputs = {"input_ids": ids, "attention_mask": batch.attention_mask, **defaults}
    if PACKED_TEXTS in defaults:  # whose defaults take rows for padded ones, which this graph may not have
        inputs |= batch.packing()
    found = compiled(inputs)
    return [np.asarray(found[output]).tobytes() for output in compiled.outputs]


def _keep_small_constants(model: Any) -> None:
    """Have a form without weights leave out large constants only.

    OpenVINO 2026.4 records of every constant where it was read, and reads it from there again even if it has made
    another of it meanwhile; such a form slices in other places. Weights stay what they are, or are converted in the
    same way.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_byte_size() < _LEAST_LEFT_OUT_BYTES:
            notes = node.get_rt_info()
            for name in [name for name in notes.keys() if name.startswith(_WHERE_READ)]:  # noqa: SIM118 - no dict
                del notes[name]


def _drop_padded_attention(model: Any) -> None:
    """Leave out the attention of padded rows, which cost a short query a tenth of its time even where there are none.

    The exporter joins three attentions by layer: of whole rows, of padded and of packed ones.
    """
    from openvino import opset13

    for node in model.get_ordered_ops():
        is_joined = node.get_type_name() == "Concat" and node.get_friendly_name().startswith("attention.")
        if is_joined and node.get_input_size() == 3:
            left = opset13.concat([node.input_value(0), node.input_value(2)], 1, name=node.get_friendly_name())
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(left.output(0))


def _open_optional_inputs(model: Any) -> dict[str, Tokens]:
    """Make inputs of the constants that stand for optional ones; the values that they had, by name.

    They are constants in the file because OpenVINO has no inputs with defaults: other programs that compile the file
    see two inputs, and get every token of texts that are not packed.
    """
    from openvino import opset13

    defaults = {}
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        if node.get_type_name() != "Constant" or name not in _OPTIONAL_SHAPES:
            continue
        parameter = opset13.parameter(_OPTIONAL_SHAPES[name], np.int64, name=name)
        parameter.output(0).set_names({name})
        defaults[name] = np.array(node.data, dtype=np.int64)
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(parameter.output(0))
        model.add_parameters([parameter])
    model.validate_nodes_and_infer_types()
    return defaults
