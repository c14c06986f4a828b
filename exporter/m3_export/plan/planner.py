"""From activation statistics to the plan of one variant: costs → candidates → search."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from m3_export.arrays import Ids
from m3_export.calibration.statistics import CALIBRATION_TOKENS
from m3_export.options import ExportOptions, Target, VariantName
from m3_export.plan import timing
from m3_export.plan.costs import Costs, Seconds, recorded, weighted
from m3_export.plan.losses import Figures, LossesByText
from m3_export.plan.plan import (
    DYNAMIC,
    FLOAT,
    FloatType,
    Kind,
    Precision,
    PrecisionPlan,
    Projection,
    Scheme,
    Setting,
    projections,
)
from m3_export.plan.search import AS_FAST, SAME_TIME, Candidate, Repair, Trial, search
from m3_export.plan.simulation import QuantizedModel, Simulation
from m3_export.quantize.projection import fake_quantize, quantize_projection
from m3_export.quantize.variants import engine_of
from m3_runtime.bundle.manifest import EngineName, Geometry
from m3_runtime.io.progress import Progress

STRENGTHS = (0.5, 0.7, 0.85, 0.95)  # of smoothing
TUNING_ROWS = 256
EARLY = (1 / 6, 1 / 3, 1 / 2, 2 / 3, 1)  # of the layers: where a small error turns a degenerate text into another one
RARE = 0.01  # of degenerate texts: no clipped ranges but jumps, of which the mean loss of a few texts says nothing
MOST_SEARCHES = 3  # corrected costs after each
NO_SLOWER = 1.03  # a bf16 plan may take this much of the f32 plan's time for one short query

# Texts of the sensitivity analysis: one run per projection and precision, so few and short ones.
NATURAL, NATURAL_TOKENS, DEGENERATE, DEGENERATE_TOKENS = 10, 32, 16, 8
PAIRS, DEGENERATE_PAIR_TOKENS = 24, 16
P = TypeVar("P")


@dataclass(frozen=True)
class TuningTexts:
    """Calibration texts as ids: ranges are measured on one part, projections are compared on the other."""

    ranges: tuple[Ids, ...]
    natural: int  # how many of `ranges` are natural; they come first
    tuning: tuple[Ids, ...]
    is_degenerate: tuple[bool, ...]

    @classmethod
    def split(cls, natural: Sequence[Ids], degenerate: Sequence[Ids]) -> "TuningTexts":
        """Every fifth text of each kind is for tuning; a single text is both."""
        parts = [(texts[::5], [t for i, t in enumerate(texts) if i % 5] or texts) for texts in (natural, degenerate)]
        (natural_tuning, natural_ranges), (degenerate_tuning, degenerate_ranges) = parts
        chosen = [_cut(row, NATURAL_TOKENS) for row in natural_tuning[:NATURAL]]
        strange = [_cut(row, DEGENERATE_TOKENS) for row in degenerate_tuning[:DEGENERATE]]
        return cls(
            ranges=(*natural_ranges, *degenerate_ranges),
            natural=len(natural_ranges),
            tuning=(*chosen, *strange),
            is_degenerate=(False,) * len(chosen) + (True,) * len(strange),
        )

    @classmethod
    def of_pairs(
        cls, natural: Sequence[P], degenerate: Sequence[P], ids: Callable[[Sequence[P], int], Sequence[Ids]]
    ) -> "TuningTexts":
        """The same of pairs, of which the tokenizer knows what may be cut; more of them, as each gives one number.

        Args:
            natural: pairs.
            degenerate: pairs.
            ids: pairs, and the most tokens of one → their ids.
        """
        ranges = [[pair for i, pair in enumerate(pairs) if i % 5] or pairs for pairs in (natural, degenerate)]
        chosen = ids(natural[::5][:PAIRS], NATURAL_TOKENS)
        strange = ids(degenerate[::5][:DEGENERATE], DEGENERATE_PAIR_TOKENS)
        return cls(
            ranges=tuple(row for pairs in ranges for row in ids(pairs, CALIBRATION_TOKENS)),
            natural=len(ranges[0]),
            tuning=(*chosen, *strange),
            is_degenerate=(False,) * len(chosen) + (True,) * len(strange),
        )


@dataclass(frozen=True)
class _Engine:
    """What the engine says of plans, each asked once: figures (see `Planner.plan`), and the seconds of two in turns.

    Attributes:
        evaluate: writes and measures a plan.
        seconds: of two plans that were evaluated.
        reference: what seconds are counted in.
    """

    evaluate: Callable[[PrecisionPlan], tuple[Figures, Figures]]
    seconds: Callable[[PrecisionPlan, PrecisionPlan], tuple[Seconds, Seconds]]
    reference: Seconds


@dataclass(frozen=True)
class Planned:
    """The plan that was chosen and how: every trial (the chosen one first), and predicted seconds by shape."""

    plan: PrecisionPlan
    trials: tuple[Trial, ...]
    costs: Costs | None
    seconds: Seconds | None


class Planner:
    """Plans the INT8 variants of one model; what engines have in common is computed once."""

    def __init__(
        self,
        quantized: QuantizedModel,
        texts: TuningTexts,
        geometry: Geometry,
        limits: Figures,
        options: ExportOptions,
        progress: Progress,
    ) -> None:
        """Nothing is computed yet."""
        self._quantized, self._texts, self._geometry = quantized, texts, geometry
        self._small = timing.SmallModels(quantized)
        self._limits, self._objective, self._target = limits, options.objective, options.target
        self._progress = progress
        self._known: dict[tuple[Projection, Scheme, int], LossesByText] = {}

    def plan(
        self,
        name: VariantName,
        work: Path,
        evaluate: Callable[[PrecisionPlan], tuple[Figures, Figures]],
        faster: Callable[[PrecisionPlan, PrecisionPlan], tuple[Seconds, Seconds]],
    ) -> Planned:
        """Search the fastest plan within the budget; again where the costs do not predict what the engine takes.

        Args:
            name: the variant.
            work: a folder for small models that are timed.
            evaluate: writes and measures a plan: its figures, and those expected of other texts.
            faster: measures the seconds of two plans that were evaluated, in turns.

        Raises:
            PlanError: costs of the target are not known for this model.
        """
        costs, layers = self._costs(name, work), self._geometry.layers
        reference = costs.seconds(self._uniform(costs, costs.settings[0], FLOAT), layers)

        def timed(one: PrecisionPlan, other: PrecisionPlan) -> tuple[Seconds, Seconds]:
            with self._progress.step(f"    Timing {one} and {other} in turns"):
                return faster(one, other)

        predicted = partial(_predicted, costs, layers)  # of another processor, this one's times say nothing
        engine = _Engine(cache(evaluate), cache(timed) if self._target is Target.HERE else predicted, reference)
        chosen, tried = None, dict[PrecisionPlan, Trial]()
        for _ in range(MOST_SEARCHES):
            trials = self._search(costs, engine, chosen.candidate if chosen else None)
            tried |= {trial.candidate.plan: trial for trial in trials}
            if chosen is None:
                chosen = trials[0]
            elif trials[0].holds(self._limits):
                chosen = self._faster(engine, chosen, trials[0])
            corrected = self._corrected(costs, engine, trials)
            if corrected is None:
                break
            costs = corrected
        assert chosen is not None
        plan = chosen.candidate.plan
        others = (trial for trial in tried.values() if trial.candidate.plan != plan)
        return Planned(plan, (chosen, *others), costs, costs.seconds(plan, layers))

    def _search(self, costs: Costs, engine: "_Engine", chosen: Candidate | None) -> tuple[Trial, ...]:
        """One search by given costs, on from what an earlier one chose; the first trial is the one to take."""

        def time_of(plan: PrecisionPlan) -> float:
            return weighted(self._objective, costs.seconds(plan, self._geometry.layers), engine.reference)

        candidates = [Candidate(plan, title, time_of(plan)) for title, plan in self._candidates(costs, time_of)]
        if chosen is not None:
            candidates.append(replace(chosen, time=time_of(chosen.plan)))
        for candidate in sorted(candidates, key=lambda candidate: candidate.time):
            self._progress.say(f"    {candidate.time:.3f} of float predicted: {candidate.name}, {candidate.plan}")
        repairs: dict[tuple[Setting, bool], Repair] = {}
        best: list[Trial] = []

        def try_out(candidate: Candidate) -> Trial:
            trial = self._tried(candidate, engine, best[-1].candidate.name if best else None)
            if not best and trial.holds(self._limits):
                best.append(trial)
            return trial

        def repaired(trial: Trial, seen: Set[PrecisionPlan], trials: Sequence[Trial]) -> Candidate | None:
            plan = trial.candidate.plan
            over = trial.expected.in_parts_of(self._limits) > 1
            if over[-1] and not over[:-1].any() and trial.measured.degenerate_share <= RARE:
                return self._with_early_layers_float(trial, time_of)
            if trial.holds(self._limits) and _early_float_layers(plan):
                return None  # faster ones are known, and were over
            kind = (plan.setting, _is_smoothed(trial.candidate.origin))
            if kind not in repairs:
                repairs[kind] = self._repair(costs, *kind, engine.reference)
            with self._progress.step(f"  Repairing {trial.candidate.name}"):
                return repairs[kind](trial, seen, trials)

        def faster_of(a: Trial, b: Trial) -> Trial:
            best.append(self._faster(engine, a, b))
            return best[-1]

        return search(candidates, self._limits, try_out, repaired, faster_of)

    def _tried(self, candidate: Candidate, engine: "_Engine", best: str | None) -> Trial:
        """A candidate as the engine measures it."""
        so_far = f"; best so far: {best}" if best else ""
        title = f"  Trying {candidate.name} ({candidate.plan}), {candidate.time:.3f} of float predicted{so_far}"
        with self._progress.step(title):
            trial = Trial(candidate, *engine.evaluate(candidate.plan))
        parts = trial.expected.in_parts_of(self._limits)
        names = self._limits.names()
        self._progress.say("    of the budget: " + ", ".join(f"{n} {p:.0%}" for n, p in zip(names, parts, strict=True)))
        return trial

    def _faster(self, engine: "_Engine", a: Trial, b: Trial) -> Trial:
        """The faster of two trials that hold; of two that are as fast the more accurate one."""
        if a.candidate.plan == b.candidate.plan:
            return b
        seconds = engine.seconds(a.candidate.plan, b.candidate.plan)
        times = [weighted(self._objective, found, engine.reference) for found in seconds]
        if max(times) <= min(times) * SAME_TIME:
            return min(a, b, key=lambda trial: trial.expected.worst(self._limits))
        return a if times[0] < times[1] else b

    def _corrected(self, costs: Costs, engine: "_Engine", trials: Sequence[Trial]) -> Costs | None:
        """Costs that predict how a choice's time compares with others'; None if these do, or are recorded."""
        if not trials[0].holds(self._limits) or self._target is not Target.HERE:
            return None
        corrected, layers = costs, self._geometry.layers
        for plan, start in _comparisons(costs, trials):
            measured = engine.seconds(plan, start)
            longer = weighted(self._objective, *measured)
            expected = weighted(self._objective, costs.seconds(plan, layers), costs.seconds(start, layers))
            self._progress.say(f"    {plan} takes {longer:.3f} of the time of {start}; predicted: {expected:.3f}")
            if max(longer, expected) > AS_FAST * min(longer, expected):
                corrected = corrected.corrected(plan, start, measured)
        return None if corrected is costs else corrected

    def _costs(self, name: VariantName, work: Path) -> Costs:
        if self._target is not Target.HERE:
            is_one_token = self._small.is_one_token
            return recorded(engine_of(name), self._geometry, self._target.value, is_one_token=is_one_token)
        track = partial(self._progress.bar, title="costs", unit="model")
        with self._progress.step(f"  Timing {name}'s precisions on models of up to {timing.LAYERS} layers"):
            return timing.measure_costs(self._small, name, self._geometry, work, track)

    def _uniform(self, costs: Costs, setting: Setting, scheme: Scheme) -> PrecisionPlan:
        schemes = dict.fromkeys(projections(self._geometry.layers), scheme)
        return PrecisionPlan(schemes, setting.group, setting.float_type)

    def _candidates(
        self, costs: Costs, time_of: Callable[[PrecisionPlan], float]
    ) -> Sequence[tuple[str, PrecisionPlan]]:
        """Whole-model candidates; those with static or smoothed schemes have them tuned per projection."""
        found: list[tuple[str, PrecisionPlan]] = []

        def add(title: str, schemes: Mapping[Projection, Scheme], settings: Sequence[Setting]) -> None:
            plans = [PrecisionPlan(dict(schemes), s.group, s.float_type) for s in settings]
            found.append((title, min(self._not_slower(plans, costs), key=time_of)))

        groups = sorted({setting.group for setting in costs.settings})
        every = projections(self._geometry.layers)
        if Precision.STATIC in costs.precisions(costs.settings[0]):
            static = self._static
            add("all static", static, costs.settings)
            mixed = {p: DYNAMIC if p.kind is Kind.FFN_OUT else scheme for p, scheme in static.items()}
            add("static, FFN-out dynamic", mixed, costs.settings)
        add("all float", dict.fromkeys(every, FLOAT), costs.settings)
        for group in groups:
            of_group = [setting for setting in costs.settings if setting.group == group]
            add("all dynamic", dict.fromkeys(every, DYNAMIC), of_group)
        if costs.engine is EngineName.ONNXRUNTIME:
            add("all dynamic, smoothed", self._smoothed, costs.settings)
        return found

    def _not_slower(self, plans: Sequence[PrecisionPlan], costs: Costs) -> list[PrecisionPlan]:
        """Without the bf16 plans that make one short query slower than f32 does."""
        query = {plan: costs.seconds(plan, self._geometry.layers)["query"] for plan in plans}
        return [
            p for p in plans if query[p] <= NO_SLOWER * query.get(replace(p, float_type=FloatType.F32), float("inf"))
        ]

    @cached_property
    def _static(self) -> dict[Projection, Scheme]:
        with self._progress.step("  Tuning static ranges"):
            schemes = [Scheme(Precision.STATIC, smoothing=strength) for strength in STRENGTHS]
            return {projection: self._nearest(projection, schemes) for projection in self._every()}

    @cached_property
    def _smoothed(self) -> dict[Projection, Scheme]:
        with self._progress.step("  Tuning smoothing"):
            schemes = [DYNAMIC, *(Scheme(Precision.DYNAMIC, smoothing=strength) for strength in STRENGTHS)]
            return {projection: self._nearest(projection, schemes) for projection in self._every()}

    def _every(self) -> Iterable[Projection]:
        return self._progress.bar(projections(self._geometry.layers), "tuning", "projection")

    def _nearest(self, projection: Projection, schemes: Sequence[Scheme]) -> Scheme:
        """The scheme whose product is nearest to exact on the calibration rows, every row counting the same."""
        inputs, weight = self._quantized.statistics.inputs[projection], self._quantized.weight(projection)
        rows = inputs.rows[:: max(1, len(inputs.rows) // TUNING_ROWS)]
        exact = rows @ weight
        spread = (exact - exact.mean(0)).pow(2).sum(1).clamp(min=1e-12)

        def error(scheme: Scheme) -> float:
            product = fake_quantize(quantize_projection(scheme, inputs, weight, 0), 0, after_gelu=inputs.after_gelu)
            return float(((product(rows) - exact).pow(2).sum(1) / spread).mean())

        with torch.inference_mode():
            return min(schemes, key=error)

    def _repair(self, costs: Costs, setting: Setting, is_smoothed: bool, reference: Seconds) -> Repair:
        group = setting.group
        precisions = costs.precisions(setting)
        ladder = {
            projection: [self._scheme(projection, precision, is_smoothed) for precision in precisions]
            for projection in projections(self._geometry.layers)
        }

        def losses(projection: Projection, scheme: Scheme) -> LossesByText:
            key = (projection, scheme, group if scheme.precision is Precision.DYNAMIC else 0)
            if key not in self._known:
                self._known[key] = self._simulation.losses_of_projection(projection, scheme, group)
            return self._known[key]

        def time(projection: Projection, scheme: Scheme) -> float:
            added = costs.added(setting, projection, scheme.precision, self._geometry.layers)
            return weighted(self._objective, added, reference)

        return Repair(ladder, losses, self._simulation.losses_of_embedding(), time, self._limits)

    def _with_early_layers_float(self, trial: Trial, time_of: Callable[[PrecisionPlan], float]) -> Candidate | None:
        """The same plan with more of its first layers in float."""
        plan, layers = trial.candidate.plan, self._geometry.layers
        done = _early_float_layers(plan)
        first = next((n for n in (max(1, round(share * layers)) for share in EARLY) if n > done), None)
        if first is None:
            return None
        schemes = {p: FLOAT if p.layer < first else scheme for p, scheme in plan.schemes.items()}
        early = replace(plan, schemes=schemes)
        name = f"{trial.candidate.name.split(', first ')[0]}, first {first} layers float"
        return trial.candidate.repaired(early, name, time_of(early))

    def _scheme(self, projection: Projection, precision: Precision, is_smoothed: bool) -> Scheme:
        if precision is Precision.FLOAT:
            return FLOAT
        if precision is Precision.STATIC:
            return self._static[projection]
        return self._smoothed[projection] if is_smoothed else DYNAMIC

    @cached_property
    def _simulation(self) -> Simulation:
        with self._progress.step(f"  Exact outputs of {len(self._texts.tuning)} tuning texts"):
            return Simulation(self._quantized, self._texts.tuning, self._texts.is_degenerate)


def _predicted(costs: Costs, layers: int, one: PrecisionPlan, other: PrecisionPlan) -> tuple[Seconds, Seconds]:
    return costs.seconds(one, layers), costs.seconds(other, layers)


def _comparisons(costs: Costs, trials: Sequence[Trial]) -> Iterator[tuple[PrecisionPlan, PrecisionPlan]]:
    """Pairs of plans whose times say most of the costs behind a choice.

    The choice and what it was made from, or else the next best whole-model candidate; and with the other float type.
    """
    chosen, plan = trials[0].candidate, trials[0].candidate.plan
    others = [other.candidate for other in trials[1:] if not other.candidate.is_repair]
    rivals = [other for other in others if other.plan.float_type is plan.float_type]
    if chosen.start is not None:
        yield plan, chosen.start
    elif rivals:
        yield plan, min(rivals, key=lambda rival: rival.time).plan
    for setting in costs.settings:
        if setting.group == plan.setting.group and setting.float_type is not plan.float_type:
            yield replace(plan, float_type=setting.float_type), plan


def _is_smoothed(plan: PrecisionPlan) -> bool:
    """Whether dynamic activations are smoothed: then a projection that becomes dynamic is smoothed, too."""
    return any(scheme.precision is Precision.DYNAMIC and scheme.smoothing for scheme in plan.schemes.values())


def _early_float_layers(plan: PrecisionPlan) -> int:
    """How many layers from the first on have every projection in float."""
    quantized = [p.layer for p, scheme in plan.schemes.items() if scheme.precision is not Precision.FLOAT]
    return min(quantized, default=max(p.layer for p in plan.schemes) + 1)


def _cut(row: Ids, tokens: int) -> Ids:
    """A text's first tokens and its last one, </s>."""
    return row if len(row) <= tokens else np.append(row[: tokens - 1], row[-1])
