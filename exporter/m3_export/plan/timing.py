"""Times of plans: models of a few layers for the costs of each precision, whole variants in turns for the choice."""

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from m3_export.calibration.statistics import ActivationStatistics
from m3_export.graph import passes
from m3_export.graph.trace import trace
from m3_export.options import VariantName
from m3_export.plan.costs import LAST_LAYER, Costs, Seconds, shapes_of
from m3_export.plan.plan import FLOAT, FloatType, Kind, Precision, PrecisionPlan, Scheme, Setting, projections
from m3_export.plan.simulation import QuantizedModel
from m3_export.quantize.variants import Graphs, engine_of, properties_of, write_int8
from m3_runtime.bundle.manifest import EngineName, Geometry, Head, Pooling, Variant
from m3_runtime.cpu import CpuInfo, cpu_info, default_threads
from m3_runtime.encode.batching import pack_batch, pad_batch
from m3_runtime.engines import Engine, TokenBatch, is_pooled_only
from m3_runtime.engines.select import open_graph

K = TypeVar("K")
Variation: TypeAlias = tuple[Kind | None, Precision] | None
Model: TypeAlias = tuple[Setting, int, Variation]  # of so many layers
LAYERS = 3  # of the small models; a difference of layers is what is wanted, and two of them are measured against one
WORDS = 1024  # of their vocabulary: looking up a word takes as long in a small table
ROUNDS = {"query": 25, "passage": 9, "batch": 5}
FEW_MODELS = 24  # of fewer small ones each is run more often: all take about as long, and noise evens out
SCHEMES = {
    Precision.STATIC: Scheme(Precision.STATIC, smoothing=0.7),
    Precision.DYNAMIC: Scheme(Precision.DYNAMIC),
    Precision.FLOAT: FLOAT,
}


def offered(engine: EngineName, cpu: CpuInfo) -> tuple[Precision, ...]:
    """The precisions that an engine multiplies on a processor, fastest first as a rule.

    OpenVINO's static products saturate on x86 without an int8 dot product; ONNX Runtime's graph has dynamic ranges
    only.
    """
    if engine is EngineName.OPENVINO and cpu.has_int8_dot:
        return (Precision.STATIC, Precision.DYNAMIC, Precision.FLOAT)
    return (Precision.DYNAMIC, Precision.FLOAT)


def settings(engine: EngineName, cpu: CpuInfo, hidden_size: int, ffn_size: int) -> tuple[Setting, ...]:
    """The settings worth timing: groups of 128, 256 and a token, each in f32 and, where it is multiplied, bf16."""
    if engine is EngineName.ONNXRUNTIME:
        return (Setting(FloatType.F32, 0),)
    widest = gcd(hidden_size, ffn_size)
    groups = sorted({group for group in (128, 256, widest) if widest % group == 0})
    types = [FloatType.F32, FloatType.BF16] if cpu.has_bf16 else [FloatType.F32]
    return tuple(Setting(float_type, group) for group in groups for float_type in types)


def measure_costs(
    small: "SmallModels",
    name: VariantName,
    geometry: Geometry,
    work: Path,
    track: Callable[[Sequence[Model]], Iterable[Model]],
) -> Costs:
    """Time models of one and of `LAYERS` layers on an engine of this machine.

    Args:
        small: the first layers of the model.
        name: the variant, which says the engine.
        geometry: the model's.
        work: a folder for the small models; they are removed.
        track: wraps the iteration over the models to be written, for a progress bar.
    """
    engine, cpu = engine_of(name), cpu_info()
    found = settings(engine, cpu, geometry.hidden_size, geometry.ffn_size)
    first, *others = offered(engine, cpu)
    most = small.most_layers
    base = dict.fromkeys(Kind, SCHEMES[first])
    # one model per precision, and one per kind and precision; in each the other projections have the first precision
    variations: dict[Variation, Mapping[Kind, Scheme]] = {None: base}
    variations |= {(None, p): dict.fromkeys(Kind, SCHEMES[p]) for p in others}
    variations |= {(kind, p): {**base, kind: SCHEMES[p]} for kind in Kind for p in others}
    plans: dict[Model, PrecisionPlan] = {}
    for setting in found:
        plans[setting, 1, None] = _plan(base, 1, setting)
        plans |= {(setting, most, key): _plan(schemes, most, setting) for key, schemes in variations.items()}
    seconds = _timed(small, name, plans, geometry, work, track)
    whole = {kind: most - 1 + LAST_LAYER[kind] if small.is_one_token else float(most) for kind in Kind}
    table, extra = {}, {}
    for setting in found:
        several = {key: seconds[setting, most, key] for key in variations}
        table[setting] = _base(seconds[setting, 1, None], several[None], most)
        extra[setting] = {(kind, first): dict.fromkeys(several[None], 0.0) for kind in Kind} | _extra(several, whole)
    return Costs(
        engine=engine,
        processor=f"{cpu.name}, {default_threads()} threads",
        multipliers=cpu.multipliers,
        hidden_size=geometry.hidden_size,
        ffn_size=geometry.ffn_size,
        base=table,
        extra=extra,
        is_one_token=small.is_one_token,
    )


def _base(one: Seconds, several: Seconds, layers: int) -> tuple[Seconds, Seconds]:
    """Seconds of what is there once, and of a layer."""
    layer = {shape: (several[shape] - one[shape]) / max(layers - 1, 1) for shape in one}
    return {shape: one[shape] - layer[shape] for shape in one}, layer


def _extra(several: Mapping[Variation, Seconds], layers: Mapping[Kind, float]) -> dict[tuple[Kind, Precision], Seconds]:
    """What a projection adds in another precision than the first, levelled to models in one precision.

    Args:
        several: seconds of models that differ in precisions.
        layers: that run each kind of projection for all tokens.
    """
    base = several[None]
    extra: dict[tuple[Kind, Precision], Seconds] = {}
    for key, uniform in several.items():
        if key is None or key[0] is not None:
            continue
        kinds = {kind: several[kind, key[1]] for kind in Kind}
        missing = {s: uniform[s] - base[s] - sum(found[s] - base[s] for found in kinds.values()) for s in base}
        for kind, found in kinds.items():
            of_kind = layers[kind] or 1.0  # a single layer that runs for one token: what it adds is next to nothing
            extra[kind, key[1]] = {s: (found[s] - base[s] + missing[s] / len(Kind)) / of_kind for s in base}
    return extra


def in_turns(
    engines: Mapping[K, Engine], heads: Sequence[Head], geometry: Geometry, times: int = 1
) -> dict[K, Seconds]:
    """Seconds of each engine for each shape; all take turns, a first round is discarded.

    A shape is cut to what the model takes.

    Args:
        engines: what is timed.
        heads: what they compute.
        geometry: the model's.
        times: as many rounds as usual.
    """
    found: dict[K, dict[str, float]] = {key: {} for key in engines}
    rng = np.random.default_rng(0)
    for shape in shapes_of(heads):
        size = (shape.texts, min(shape.tokens, geometry.max_tokens))
        ids = rng.integers(5, min(geometry.vocab_size, WORDS), size, dtype=np.int32)
        batches = {key: _batch(ids, engine.packed_tokens) for key, engine in engines.items()}
        samples: dict[K, list[float]] = {key: [] for key in engines}
        for number in range(times * ROUNDS[shape.name] + 1):
            for key, engine in engines.items():
                start = time.perf_counter()
                engine.run(batches[key], heads)
                if number:
                    samples[key].append(time.perf_counter() - start)
        for key, seconds in typical_seconds(samples).items():
            found[key][shape.name] = seconds
    return dict(found)


def typical_seconds(samples: Mapping[K, Sequence[float]]) -> dict[K, float]:
    """Seconds of each engine from those of its rounds, what slowed or sped up a whole round left out.

    An engine's share of a round's geometric mean says how it compares; its median over rounds counts. Processors of
    shared machines change their speed by a third from one minute to the next, precisions differ by less.

    >>> typical_seconds({"a": [1.0, 3.0, 1.0, 1.0], "b": [2.0, 6.0, 2.0, 2.0]})
    {'a': 1.0, 'b': 2.0}
    """
    table = np.array(list(samples.values()))
    rounds = np.exp(np.log(table).mean(axis=0))
    shares = np.median(table / rounds, axis=1)
    typical = np.median(rounds)
    return {key: round(float(share * typical), 12) for key, share in zip(samples, shares, strict=True)}


def _timed(
    small: "SmallModels",
    name: VariantName,
    plans: Mapping[Model, PrecisionPlan],
    geometry: Geometry,
    work: Path,
    track: Callable[[Sequence[Model]], Iterable[Model]],
) -> dict[Model, Seconds]:
    """Write the small models and run them all in turns; what differs in nothing that is computed is run once."""
    written: dict[tuple[Scheme, ...], tuple[Path, Variant]] = {}
    with ExitStack() as stack:
        engines: dict[PrecisionPlan, Engine] = {}
        for key in track(list(plans)):
            plan = _computed(plans[key])
            if plan in engines:
                continue
            schemes = tuple(plan.schemes.values())
            if schemes not in written:
                folder = work / f"timed-{len(written)}"
                written[schemes] = folder, small.write(name, plan, work, folder)
            folder, variant = written[schemes]
            timed = replace(variant, properties=properties_of(name, plan))
            engines[plan] = stack.enter_context(closing(open_graph(folder / timed.graph, timed, default_threads())))
        seconds = in_turns(engines, small.heads, geometry, times=max(1, FEW_MODELS // len(engines)))
    return {key: seconds[_computed(plan)] for key, plan in plans.items()}


def _computed(plan: PrecisionPlan) -> PrecisionPlan:
    """The same plan, its group left out where nothing is dynamic."""
    is_dynamic = any(scheme.precision is Precision.DYNAMIC for scheme in plan.schemes.values())
    return plan if is_dynamic else replace(plan, group=0)


class SmallModels:
    """The first layers of a model, with few words; traced once for all engines."""

    def __init__(self, quantized: QuantizedModel) -> None:
        """Nothing is traced yet."""
        self._quantized = quantized
        self._traced: dict[int, tuple[QuantizedModel, ir.Model]] = {}

    @property
    def most_layers(self) -> int:
        """Layers of the largest one."""
        return min(LAYERS, len(self._quantized.model.layers))

    @property
    def heads(self) -> tuple[Head, ...]:
        """The model's heads."""
        return self._quantized.model.outputs

    @property
    def is_one_token(self) -> bool:
        """Whether the last layer runs for one token of each text."""
        return is_pooled_only(self.heads) and self._quantized.model.pooling is Pooling.CLS

    def write(self, name: VariantName, plan: PrecisionPlan, work: Path, folder: Path) -> Variant:
        """Write a variant of as many layers as the plan has; `work` is for graphs that an engine has to read."""
        layers = len(plan.schemes) // len(Kind)
        if layers not in self._traced:
            self._traced[layers] = self._first(layers)
        quantized, portable = self._traced[layers]
        return write_int8(name, Graphs(portable, work), quantized.statistics, plan, quantized.projections(plan), folder)

    def _first(self, layers: int) -> tuple[QuantizedModel, ir.Model]:
        model = copy.copy(self._quantized.model)
        model._modules, model._parameters = dict(model._modules), dict(model._parameters)
        model.layers = torch.nn.ModuleList(list(model.layers)[:layers])
        model.words = torch.nn.Parameter(model.words[:WORDS].clone(), requires_grad=False)
        quantized = QuantizedModel(model, lambda: _first_layers(self._quantized.statistics, layers))
        return quantized, passes.portable(trace(model))


def _first_layers(statistics: ActivationStatistics, layers: int) -> ActivationStatistics:
    kept = set(projections(layers))
    return ActivationStatistics(
        means=statistics.means[: 1 + 2 * layers],
        outlier_neurons=statistics.outlier_neurons[:layers],
        inputs={projection: inputs for projection, inputs in statistics.inputs.items() if projection in kept},
    )


def _plan(schemes: Mapping[Kind, Scheme], layers: int, setting: Setting) -> PrecisionPlan:
    return PrecisionPlan(
        {projection: schemes[projection.kind] for projection in projections(layers)}, setting.group, setting.float_type
    )


def _batch(ids: NDArray[np.int32], packed_tokens: int) -> TokenBatch:
    """Texts (B, T) as the runtime runs them; which id pads does not matter for the time."""
    if ids.shape[1] <= packed_tokens:
        return pack_batch([[row] for row in ids], pad_id=1, pooling=Pooling.CLS)
    return pad_batch(list(ids), pad_id=1)
