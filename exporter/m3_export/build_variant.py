"""Each variant planned, written and measured: candidates in folders of their own, the chosen one in the bundle."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from m3_export.arrays import Ids
from m3_export.errors import ExportError
from m3_export.options import ExportOptions, VariantName
from m3_export.plan.costs import Objective, Seconds, weighted
from m3_export.plan.losses import Figures, limits_of
from m3_export.plan.plan import PrecisionPlan, plans_to_text
from m3_export.plan.planner import Planned, Planner
from m3_export.plan.simulation import QuantizedModel
from m3_export.plan.timing import in_turns
from m3_export.quantize.variants import Graphs, properties_of, write_float, write_int8
from m3_export.verify.budget import Excess, excesses
from m3_export.verify.measure import MeasuredParity, ParityCheck
from m3_export.verify.scores import NO_CORRECTION, ScoreCorrection
from m3_runtime.bundle.manifest import Geometry, Parity, Variant
from m3_runtime.cpu import default_threads
from m3_runtime.engines.select import open_graph
from m3_runtime.io.progress import Progress

SEED = 20_240_205  # of the bootstrap: the same figures for the same losses


@dataclass(frozen=True)
class VariantResult:
    """A variant as it will ship: its parity, what is over budget, every parity that was reached, and its plan."""

    variant: Variant
    parity: Parity
    over: tuple[Excess, ...]
    reached: tuple[Parity, ...]
    planned: Planned | None
    correction: ScoreCorrection = NO_CORRECTION  # in a reranker's graph


@dataclass(frozen=True)
class _Written:
    """A plan as a variant in a folder of its own."""

    variant: Variant
    folder: Path
    correction: ScoreCorrection = NO_CORRECTION  # of a reranker's scores, which its graph does not have yet


@dataclass(frozen=True)
class _Measured(_Written):
    """The same with what was measured of it, after the correction."""

    parity: MeasuredParity = field(kw_only=True)


@dataclass(frozen=True)
class VariantBuilder:
    """Writes and measures the variants of one model."""

    graphs: Graphs
    quantized: QuantizedModel  # the model and its activation statistics
    calibration: Sequence[Ids]  # the natural texts, or pairs, of these statistics
    planner: Planner  # searches the plans that are not given
    check: ParityCheck
    staging: Path  # the bundle's folder
    options: ExportOptions
    progress: Progress

    def build(self, name: VariantName, plan: PrecisionPlan | None) -> VariantResult:
        """Write a variant within its budget, or as near as it gets; without a plan to follow, search one.

        Raises:
            ExportError: a library failed.
            PlanError: the costs of the target are not known for this model.
        """
        if name is VariantName.ONNX_FP32:
            with self.progress.step(f"Writing {name}"), library_errors(f"writing {name}"):
                variant = write_float(self.graphs, self.staging)
            with self.progress.step(f"Measuring the parity of {name}"):
                parity = self.check.measure(variant, self.staging).parity
            return self._result(variant, parity, (parity,), None)
        if plan is not None:
            with library_errors(f"writing {name}"):
                planned = Planned(plan, (), None, None)
                fitted = self._fitted(self._write(name, plan, 0))
                chosen = self._measured(self._corrected(name, plan, fitted))
            reached = [chosen.parity.parity]
        else:
            with self.progress.step(f"Planning {name}"), library_errors(f"planning {name}"):
                planned, written = self._search(name)
                fitted = chosen = written[planned.plan]
                if fitted.correction != NO_CORRECTION:
                    chosen = self._measured(self._corrected(name, planned.plan, fitted))
            reached = [chosen.parity.parity, *(each.parity.parity for each in written.values())]
        self._move_to_bundle(chosen)
        result = self._result(chosen.variant, chosen.parity.parity, tuple(reached), planned)
        return replace(result, correction=fitted.correction)

    def _search(self, name: VariantName) -> tuple[Planned, dict[PrecisionPlan, _Measured]]:
        written: dict[PrecisionPlan, _Measured] = {}

        def evaluate(plan: PrecisionPlan) -> tuple[Figures, Figures]:
            written[plan] = self._measured(self._fitted(self._write(name, plan, len(written))))
            losses, most = written[plan].parity.losses, limits_of(self.check.budget).worst_text
            return losses.figures(most), losses.upper_bounds(most, np.random.default_rng(SEED))

        def seconds(first: PrecisionPlan, second: PrecisionPlan) -> tuple[Seconds, Seconds]:
            return self._time_in_turns(_as_planned(name, first, written), _as_planned(name, second, written))

        planned = self.planner.plan(name, self.graphs.work, evaluate, seconds)
        for plan, candidate in written.items():
            if plan != planned.plan:
                shutil.rmtree(candidate.folder)
        return planned, written

    def _write(self, name: VariantName, plan: PrecisionPlan, number: int) -> _Written:
        folder = self.graphs.work / f"{name}-{number}"
        quantized = self.quantized.projections(plan)
        with self.progress.step(f"    Writing {name}"):
            variant = write_int8(name, self.graphs, self.quantized.statistics, plan, quantized, folder)
        return _Written(variant, folder)

    def _fitted(self, written: _Written) -> _Written:
        """With the correction of a reranker's scores that suits the calibration pairs."""
        scores = self.quantized.statistics.scores
        if scores is None:
            return written
        with self.progress.step("    Scoring the calibration pairs"):
            correction = self.check.correction(written.variant, written.folder, self.calibration, scores)
        if correction != NO_CORRECTION:
            self.progress.say(f"    Score correction: {correction}")
        return replace(written, correction=correction)

    def _corrected(self, name: VariantName, plan: PrecisionPlan, written: _Written) -> _Written:
        """The variant of a reranker written again, with the correction of its scores in the graph."""
        if written.correction == NO_CORRECTION:
            return written
        shutil.rmtree(written.folder)
        graphs = self.graphs.with_score_correction(written.correction.scale, written.correction.shift)
        return replace(self, graphs=graphs)._write(name, plan, 0)

    def _measured(self, written: _Written) -> _Measured:
        with self.progress.step(f"    Measuring the parity of {written.variant.name}"):
            parity = self.check.measure(written.variant, written.folder, written.correction)
        return _Measured(written.variant, written.folder, written.correction, parity=parity)

    def _time_in_turns(self, first: _Written, second: _Written) -> tuple[Seconds, Seconds]:
        model = self.check.model
        with (
            closing(open_graph(first.folder / first.variant.graph, first.variant, default_threads())) as a,
            closing(open_graph(second.folder / second.variant.graph, second.variant, default_threads())) as b,
        ):
            seconds = in_turns({"a": a, "b": b}, model.heads, model.geometry)
        return seconds["a"], seconds["b"]

    def _move_to_bundle(self, written: _Written) -> None:
        for path in written.variant.files:
            target = self.staging / path
            target.parent.mkdir(parents=True, exist_ok=True)
            (written.folder / path).replace(target)
        shutil.rmtree(written.folder)

    def _result(
        self, variant: Variant, parity: Parity, reached: tuple[Parity, ...], planned: Planned | None
    ) -> VariantResult:
        over = excesses(parity, self.check.budget, variant.precision, normalize=self.check.model.normalize)
        if over:
            self.progress.say("  Over budget: " + "; ".join(map(str, over)))
        return VariantResult(variant, parity, over, reached, planned)


def _as_planned(name: VariantName, plan: PrecisionPlan, written: Mapping[PrecisionPlan, _Written]) -> _Written:
    """A plan's files, which are those of the same plan with another float type: that is a matter of properties."""
    if plan in written:
        return written[plan]
    same = next(found for other, found in written.items() if replace(other, float_type=plan.float_type) == plan)
    return replace(same, variant=replace(same.variant, properties=properties_of(name, plan)))


def write_plans(results: Sequence[VariantResult], geometry: Geometry, staging: Path) -> None:
    """Write plan.json, which `--plan` takes."""
    plans = {result.variant.name: result.planned.plan for result in results if result.planned}
    if plans:
        (staging / "plan.json").write_text(plans_to_text(plans, geometry), encoding="utf-8")


def speed_order(results: Sequence[VariantResult], objective: Objective) -> dict[str, str]:
    """The planned variants, fastest first, and the multipliers of the processor that this was measured on or for."""
    plans = {result.variant.name: result.planned for result in results if result.planned}
    seconds = {name: planned.seconds for name, planned in plans.items() if planned.seconds}
    processors = {planned.costs.multipliers for planned in plans.values() if planned.costs}
    if not seconds:
        return {}
    reference = next(iter(seconds.values()))
    fastest_first = sorted(seconds, key=lambda name: weighted(objective, seconds[name], reference))
    return {"fastest_first": ",".join(fastest_first), "processor": ",".join(processors)}


def score_corrections(results: Sequence[VariantResult]) -> dict[str, str]:
    """What the graphs of a reranker do to the scores of INT8."""
    found = {result.variant.name: result.correction for result in results if result.correction != NO_CORRECTION}
    return {"score_corrections": ", ".join(f"{name} {found[name]}" for name in found)} if found else {}


def over_budget_message(results: Sequence[VariantResult]) -> str:
    """What is over budget, the best that any plan reached of each figure, and what can be done."""
    lines = ["over budget, no bundle was written:"]
    for result in (each for each in results if each.over):
        lines += [f"  {result.variant.name}: {excess}" for excess in result.over]
        if len(result.reached) > 1:
            lines.append(f"    best of {len(result.reached)} plans: {_best(result.reached)}")
    lines.append(
        "Leave the variant out (--variants), set another --budget (INT8 only; FP32 is held to arithmetic noise), or "
        "keep it with --allow-over-budget"
    )
    return "\n".join(lines)


def _best(reached: Sequence[Parity]) -> str:
    figures = []
    if dense := [p.dense for p in reached if p.dense]:
        figures.append(f"dense cosine mean {max(one.cosine_mean for one in dense):.6f}")
        figures.append(f"min {max(one.cosine_min for one in dense):.6f}")
    if scores := [p.score for p in reached if p.score]:
        figures.append(f"score difference p99 ÷ spread {min(s.difference_p99 / s.spread for s in scores):.4f}")
        figures.append(f"max {min(s.difference_max / s.spread for s in scores):.4f}")
    if colbert := [p.colbert.cosine_p5 for p in reached if p.colbert]:
        figures.append(f"ColBERT p5 {max(colbert):.6f}")
    if sparse := [p.sparse.jaccard_mean for p in reached if p.sparse]:
        figures.append(f"sparse Jaccard {max(sparse):.5f}")
    return ", ".join(figures)


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Name the step in which torch or OpenVINO failed; both raise RuntimeError, out of memory for instance.

    Raises:
        ExportError: the step failed.
    """
    try:
        yield
    except RuntimeError as error:
        raise ExportError(f"{what} failed, nothing was written: {error}") from error
