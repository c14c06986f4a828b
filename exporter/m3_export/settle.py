"""Each variant planned, written and measured: candidates in folders of their own, the chosen one in the bundle."""

import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from m3_export.errors import ExportError
from m3_export.plan.costs import Objective, Seconds, weighted
from m3_export.plan.losses import Losses
from m3_export.plan.plan import PrecisionPlan, plans_to_text
from m3_export.plan.planner import Planned, Planner
from m3_export.plan.simulation import QuantizedModel
from m3_export.plan.timing import in_turns
from m3_export.progress import Progress
from m3_export.quantize.variants import Graphs, write_float, write_int8
from m3_export.recipe import Recipe, VariantName
from m3_export.verify import measure as verify
from m3_export.verify.budget import Excess, excesses
from m3_runtime.bundle.manifest import Geometry, Manifest, Parity, Variant
from m3_runtime.bundle.reader import Bundle
from m3_runtime.cpu import default_threads
from m3_runtime.engines.select import open_graph
from m3_runtime.tokenizer import M3Tokenizer

SEED = 20_240_205  # of the bootstrap: the same figures for the same losses


@dataclass(frozen=True)
class Settled:
    """A variant as it will ship: its parity, what is over budget, every parity that was reached, and its plan."""

    variant: Variant
    parity: Parity
    over: tuple[Excess, ...]
    reached: tuple[Parity, ...]
    planned: Planned | None


@dataclass(frozen=True)
class Written:
    """A plan as a variant in a folder of its own, with what was measured of it."""

    variant: Variant
    folder: Path
    measured: verify.Measured


@dataclass(frozen=True)
class Workshop:
    """All that is needed to write and measure a variant in a staging folder."""

    graphs: Graphs
    quantized: QuantizedModel
    planner: Planner
    tokenizer: M3Tokenizer
    draft: Manifest
    probe: verify.Probe
    staging: Path
    recipe: Recipe
    given: Mapping[str, PrecisionPlan]
    progress: Progress
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def settle(self, name: VariantName) -> Settled:
        """Write a variant within its budget, or as near as it gets.

        Raises:
            ExportError: a library failed.
            PlanError: the costs of the target are not known for this model.
        """
        if name is VariantName.ONNX_FP32:
            with self.progress.step(f"Writing {name}"), translated(f"writing {name}"):
                variant = write_float(self.graphs, self.staging)
            with self.progress.step(f"Measuring the parity of {name}"):
                measured = self._measured(variant, self.staging)
            return self._settled(Written(variant, self.staging, measured), (), None)
        if str(name) in self.given:
            plan = self.given[str(name)]
            with translated(f"writing {name}"):
                written = self._written(name, plan)
            planned, tried = Planned(plan, (), None, None), {plan: written}
        else:
            with self.progress.step(f"Planning {name}"), translated(f"planning {name}"):
                planned, tried = self._search(name)
            written = tried[planned.plan]
        self._move_in(written)
        return self._settled(written, [found.measured.parity for found in tried.values()], planned)

    def _search(self, name: VariantName) -> tuple[Planned, dict[PrecisionPlan, Written]]:
        tried: dict[PrecisionPlan, Written] = {}

        def evaluate(plan: PrecisionPlan) -> tuple[Losses, Losses]:
            tried[plan] = self._written(name, plan)
            losses, most = tried[plan].measured.losses, 1 - self.recipe.budget.dense_min
            return losses.figures(most), losses.upper_bounds(most, np.random.default_rng(SEED))

        def seconds(first: PrecisionPlan, second: PrecisionPlan) -> tuple[Seconds, Seconds]:
            return self._in_turns(tried[first], tried[second])

        planned = self.planner.plan(name, self.graphs.work, evaluate, seconds)
        for plan, written in tried.items():
            if plan != planned.plan:
                shutil.rmtree(written.folder)
        return planned, tried

    def _written(self, name: VariantName, plan: PrecisionPlan) -> Written:
        folder = self.graphs.work / f"candidate-{next(self._numbers)}"
        quantized = self.quantized.projections(plan)
        with self.progress.step(f"    Writing {name}"):
            variant = write_int8(name, self.graphs, self.quantized.statistics, plan, quantized, folder)
        with self.progress.step(f"    Measuring the parity of {name}"):
            return Written(variant, folder, self._measured(variant, folder))

    def _measured(self, variant: Variant, folder: Path) -> verify.Measured:
        bundle = Bundle(folder, replace(self.draft, variants=(variant,)))
        return verify.measure(
            bundle, variant, self.tokenizer, self.probe, self.recipe.budget.dense_min, default_threads()
        )

    def _in_turns(self, first: Written, second: Written) -> tuple[Seconds, Seconds]:
        with (
            closing(open_graph(first.folder / first.variant.graph, first.variant, default_threads())) as a,
            closing(open_graph(second.folder / second.variant.graph, second.variant, default_threads())) as b,
        ):
            seconds = in_turns({"a": a, "b": b}, self.draft.heads, self.draft.geometry)
        return seconds["a"], seconds["b"]

    def _move_in(self, written: Written) -> None:
        for path in written.variant.files:
            target = self.staging / path
            target.parent.mkdir(parents=True, exist_ok=True)
            (written.folder / path).replace(target)
        shutil.rmtree(written.folder)

    def _settled(self, written: Written, reached: Sequence[Parity], planned: Planned | None) -> Settled:
        variant, parity = written.variant, written.measured.parity
        over = excesses(parity, self.recipe.budget, variant.precision, normalize=self.draft.normalize)
        if over:
            self.progress.say("  Over budget: " + "; ".join(map(str, over)))
        return Settled(variant, parity, over, tuple(reached) or (parity,), planned)


def keep_plans(settled: Sequence[Settled], geometry: Geometry, staging: Path) -> None:
    """Write plan.json, which `--plan` takes."""
    plans = {found.variant.name: found.planned.plan for found in settled if found.planned}
    if plans:
        (staging / "plan.json").write_text(plans_to_text(plans, geometry), encoding="utf-8")


def speed_order(settled: Sequence[Settled], objective: Objective) -> dict[str, str]:
    """The planned variants, fastest first, and the multipliers of the processor that this was measured on or for."""
    plans = {found.variant.name: found.planned for found in settled if found.planned}
    seconds = {name: planned.seconds for name, planned in plans.items() if planned.seconds}
    processors = {planned.costs.multipliers for planned in plans.values() if planned.costs}
    if not seconds:
        return {}
    reference = next(iter(seconds.values()))
    fastest_first = sorted(seconds, key=lambda name: weighted(objective, seconds[name], reference))
    return {"fastest_first": ",".join(fastest_first), "processor": ",".join(processors)}


def over_budget_message(settled: Sequence[Settled]) -> str:
    """What is over budget, the best that any plan reached of each figure, and what can be done."""
    lines = ["over budget, no bundle was written:"]
    for found in (s for s in settled if s.over):
        lines += [f"  {found.variant.name}: {excess}" for excess in found.over]
        if len(found.reached) > 1:
            lines.append(f"    best of {len(found.reached)} plans: {_best(found.reached)}")
    lines.append(
        "Leave the variant out (--variants), set another --budget (INT8 only; FP32 is held to arithmetic noise), or "
        "keep it with --allow-over-budget"
    )
    return "\n".join(lines)


def _best(reached: Sequence[Parity]) -> str:
    figures = [
        f"dense cosine mean {max(p.dense.cosine_mean for p in reached):.6f}",
        f"min {max(p.dense.cosine_min for p in reached):.6f}",
    ]
    if colbert := [p.colbert.cosine_p5 for p in reached if p.colbert]:
        figures.append(f"ColBERT p5 {max(colbert):.6f}")
    if sparse := [p.sparse.jaccard_mean for p in reached if p.sparse]:
        figures.append(f"sparse Jaccard {max(sparse):.5f}")
    return ", ".join(figures)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Torch and OpenVINO fail with RuntimeError, for want of memory for instance."""
    try:
        yield
    except RuntimeError as error:
        raise ExportError(f"{what} failed, nothing was written: {error}") from error
