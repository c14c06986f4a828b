"""What a projection costs, by kind and by the way it is multiplied: measured on this machine, in turns.

Costs are times relative to the float encoder's projections, which are 1 together. They are rounded to a twentieth of
the float time of their kind, since a plan should not hang on the noise of a measurement.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx_ir as ir
import torch

from m3_export.passes.matching import add_initializer
from m3_export.plan.forms import Form, Heard, form_of
from m3_export.plan.plan import Choice, Kind, Precision, Projection
from m3_runtime.cpu import cpu_info, default_threads
from m3_runtime.manifest import EngineName, Geometry

TOKENS = 512
ROUNDS = 5
STEP = 0.05
WORK = {Kind.QKV: 3 / 12, Kind.ATTENTION_OUT: 1 / 12, Kind.FFN_IN: 4 / 12, Kind.FFN_OUT: 4 / 12}


class Way(StrEnum):
    """How a projection is multiplied, as far as its time is concerned."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    SMOOTHED = "dynamic, smoothed"
    APART = "dynamic, columns apart"
    FLOAT = "float"

    @classmethod
    def of(cls, choice: Choice) -> "Way":
        """The way of a choice."""
        if choice.precision is not Precision.DYNAMIC:
            return cls(choice.precision.value)
        if choice.columns_apart:
            return cls.APART
        return cls.SMOOTHED if choice.smoothing else cls.DYNAMIC


SAMPLES = {
    Way.STATIC: Choice(Precision.STATIC, smoothing=0.5),
    Way.DYNAMIC: Choice(Precision.DYNAMIC),
    Way.SMOOTHED: Choice(Precision.DYNAMIC, smoothing=0.5),
    Way.APART: Choice(Precision.DYNAMIC, columns_apart=4),
    Way.FLOAT: Choice(Precision.FLOAT),
}


@dataclass(frozen=True)
class Costs:
    """Time of each kind and way in parts of the float time of that kind, and where the figures are from."""

    ratios: Mapping[tuple[Kind, Way], float]
    source: str

    @property
    def precisions(self) -> frozenset[Precision]:
        """What the engine offers on that processor."""
        return frozenset(Precision(way.value) for _, way in self.ratios if way.value in list(Precision))

    def of(self, kind: Kind, choice: Choice, layers: int) -> float:
        """Cost of one projection of a model with so many layers."""
        return WORK[kind] / layers * self.ratios[kind, Way.of(choice)]


# For bundles that are planned on another machine than they will run on: full-size geometry, 2 cores of a Zen 5 server
# with AVX-512 VNNI, onnxruntime 1.32, openvino 2026.4.1.
_VNNI = {
    EngineName.OPENVINO: {Way.STATIC: 0.35, Way.DYNAMIC: 0.45, Way.SMOOTHED: 0.5, Way.APART: 0.55, Way.FLOAT: 1.0},
    EngineName.ONNXRUNTIME: {Way.DYNAMIC: 0.4, Way.SMOOTHED: 0.45, Way.APART: 0.5, Way.FLOAT: 1.0},
}


def known(engine: EngineName) -> Costs:
    """Costs on a processor with VNNI, for when this one has none."""
    ratios = {(kind, way): ratio for kind in Kind for way, ratio in _VNNI[engine].items()}
    return Costs(ratios, "2 cores of AMD Zen 5 (AVX-512 VNNI)")


Run = Callable[[np.ndarray], object]
Runner = Callable[[ir.Model, Mapping[Projection, Form]], Run]


def measure(
    ways: Sequence[Way],
    geometry: Geometry,
    group: int,
    runner: Runner,
    track: Callable[[Sequence[Kind]], Iterable[Kind]],
) -> Costs:
    """Time every way of every kind in turns.

    Args:
        ways: what the engine offers here, float among them.
        geometry: sizes of the model.
        group: of dynamic ranges.
        runner: makes of a small float graph and the forms of its projection a function that runs it on (1, TOKENS, K).
        track: wraps the iteration, for a progress bar.
    """
    ratios: dict[tuple[Kind, Way], float] = {}
    for kind in track(list(Kind)):
        sample = Sample.of(kind, geometry)
        runs = {way: runner(sample.graph, sample.forms(SAMPLES[way], group)) for way in ways}
        seconds = _in_turns(runs, sample.rows[None])
        ratios |= {(kind, way): _rounded(seconds[way] / seconds[Way.FLOAT], way) for way in ways}
    return Costs(ratios, f"{cpu_info().name}, {default_threads()} threads")


@dataclass(frozen=True)
class Sample:
    """A model of one projection: what comes before it in the encoder, the product, and the bias; weights are noise."""

    kind: Kind
    rows: np.ndarray
    weights: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, kind: Kind, geometry: Geometry) -> "Sample":
        """In the sizes of a model: rows (TOKENS, K), weights (K, N) each."""
        width = geometry.ffn_size if kind is Kind.FFN_OUT else geometry.hidden_size
        columns = geometry.ffn_size if kind is Kind.FFN_IN else geometry.hidden_size
        rng = np.random.default_rng(0)
        weights = tuple(rng.normal(0, 0.02, (width, columns)).astype(np.float32) for _ in kind.weights)
        return cls(kind, rng.normal(size=(TOKENS, width)).astype(np.float32), weights)

    @property
    def graph(self) -> ir.Model:
        """X (1, T, K) → normalisation or GELU → one product with bias per weight."""
        width = self.rows.shape[1]
        x = ir.Value(name="x", shape=ir.Shape(["B", "T", width]), type=ir.TensorType(ir.DataType.FLOAT))
        graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="sample")
        ones = [add_initializer(graph, name, np.ones(width, np.float32)) for name in ("gain", "offset")]
        inputs, before = ([x], "Gelu") if self.kind is Kind.FFN_OUT else ([x, *ones], "LayerNormalization")
        read = ir.node(before, inputs=inputs)
        graph.append(read)
        for name, values in zip(self.kind.weights, self.weights, strict=True):
            weight = add_initializer(graph, f"layers.0.{name}.weight", values)
            bias = add_initializer(graph, f"layers.0.{name}.bias", np.zeros(values.shape[1], np.float32))
            product = ir.node("MatMul", inputs=[read.outputs[0], weight], name=f"layers.0.{name}")
            total = ir.node("Add", inputs=[product.outputs[0], bias])
            total.outputs[0].name, total.outputs[0].dtype = name, ir.DataType.FLOAT
            graph.extend([product, total])
            graph.outputs.append(total.outputs[0])
        return ir.Model(graph, ir_version=10)

    def forms(self, choice: Choice, group: int) -> Mapping[Projection, Form]:
        """The form of its projection under a choice; none for float."""
        if choice.precision is Precision.FLOAT:
            return {}
        rows = torch.from_numpy(self.rows)
        after_gelu = self.kind is Kind.FFN_OUT
        heard = torch.nn.functional.gelu(rows) if after_gelu else rows
        weight = torch.from_numpy(np.concatenate(self.weights, axis=1))
        found = form_of(choice, Heard(heard.amin(0), heard.amax(0), heard, after_gelu), weight, group)
        return {Projection(0, self.kind): found}


def _in_turns(runs: Mapping[Way, Run], rows: np.ndarray) -> dict[Way, float]:
    """Median seconds of each; a first round is discarded."""
    seconds: dict[Way, list[float]] = {way: [] for way in runs}
    for number in range(ROUNDS + 1):
        for way, run in runs.items():
            start = time.perf_counter()
            run(rows)
            if number:
                seconds[way].append(time.perf_counter() - start)
    return {way: statistics.median(found) for way, found in seconds.items()}


def _rounded(ratio: float, way: Way) -> float:
    """In steps; int8 never counts as slower than float, since it holds a quarter of the memory."""
    steps = max(1, round(ratio / STEP))
    return 1.0 if way is Way.FLOAT else min(steps * STEP, 1 - STEP)
