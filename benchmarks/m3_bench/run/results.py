"""From a run's raw values to tables: what one wants to see before the report, and whether targets are reached."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from m3_bench import stats
from m3_bench.documents import Round, Run, Scenario
from m3_bench.errors import BenchError
from m3_bench.figures import PlacedRun, figures_of
from m3_bench.report.page import Cell, Table, printed
from m3_bench.report.tables import overview
from m3_bench.run.run import named
from m3_bench.scenarios import Measure, ProcessorClass, Target
from m3_bench.workers.gemm import FLOP
from m3_export.plan.costs import SHAPES, Objective

HEAD = ("target", "limit", "median", "met", "medians")
OverBudget = Mapping[str, tuple[str, ...]]
Values = NDArray[np.float64]
"""(R,) a figure in each round; their median decides."""


@dataclass(frozen=True)
class Series:
    """A contender's rounds at a scenario; the work of a call is tokens, of a product FLOP, of a start the start."""

    name: str
    rounds: tuple[Round, ...]
    scenario: Scenario
    call_work: int

    @property
    def speeds(self) -> Values:
        """Work per second of the median call of each round."""
        return self.call_work / np.array([np.median(one.seconds) for one in self.rounds])

    @property
    def throughputs(self) -> Values:
        """Tokens of each round by its time, all calls together."""
        return np.array(stats.tokens_per_s(self.rounds, self.scenario).values)


@dataclass(frozen=True)
class Evaluation:
    """What targets are evaluated on."""

    run: Run  # the raw values
    names: Mapping[str, str]  # of contenders, by what targets call them
    absent: Mapping[str, str]  # why others are not there, by what targets call them
    over_budget: OverBudget  # what of INT8 variants is over budget, by name; for regret
    processor: ProcessorClass  # whose limits count
    is_small_model: bool  # see `Target.small_limits`

    def series(self, key: str, scenario_name: str) -> Series:
        """A contender's rounds.

        Raises:
            BenchError: it has none.
        """
        if key not in self.names:
            raise BenchError(self.absent.get(key, f"{key} did not run; m3-bench peers runs others"))
        contender = named(self.run, self.names[key])
        found = next((one for one in contender.scenarios if one.scenario == scenario_name), None)
        scenario = next((one for one in self.run.scenarios if one.name == scenario_name), None)
        if found is None or scenario is None:
            raise BenchError(f"{contender.name} was not asked; the model may take fewer tokens")
        if found.error or not found.rounds:
            raise BenchError(found.error or "not one round was finished")
        work = FLOP if contender in self.run.products else 1 if scenario.is_start else scenario.tokens
        return Series(contender.name, found.rounds, scenario, work)


def run_table(run: Run) -> str:
    """Markdown: scenarios down, contenders across; time of a call, tokens per second, and what was not measured."""
    figures = figures_of([PlacedRun(run, "")])
    found = [table for table in [overview(figures)] if table.rows]
    return "\n".join([printed(found), "", *(f"* {gap}" for gap in figures.gaps)])


def target_table(targets: Sequence[Target], evaluation: Evaluation) -> tuple[str, bool]:
    """A Markdown table of targets, and whether every one was measured."""
    rows, is_whole = [], True
    for target in [one for each in targets for one in _expanded(each, evaluation)]:
        limit = target.limit(evaluation.processor, is_small_model=evaluation.is_small_model)
        row = [f"{target.name}: {target.title}", f"{'≤' if target.measure.is_at_most else '≥'} {_shown(target, limit)}"]
        try:
            values, series = values_of(target, evaluation)
        except BenchError as error:
            row += ["–", "–", " ".join(str(error).split())[:300]]
            is_whole = False
        else:
            median = float(np.median(values))
            over = evaluation.over_budget.get(evaluation.names[target.contender], ())
            is_met = target.is_met_by(median, limit) and not (target.measure is Measure.REGRET and over)
            raw = (_raw(list(of_one), evaluation) for _, of_one in groupby(series, lambda one: one.name))
            row += [_shown(target, median), "yes" if is_met else "no", "; ".join(raw)]
        rows.append(tuple(map(Cell, row)))
    return printed([Table("Targets", HEAD, tuple(rows))]), is_whole


def _expanded(target: Target, evaluation: Evaluation) -> Sequence[Target]:
    """Regret is a target of every INT8 variant that other plans are known for."""
    if target.measure is not Measure.REGRET:
        return [target]
    known: dict[str, list[str]] = {}
    for name in evaluation.over_budget:
        plan, _, variant = name.rpartition(" ")
        if plan:
            known.setdefault(variant, []).append(name)
    return [
        replace(target, name=f"regret-{variant}", contender=variant, against=tuple(others))
        for variant, others in known.items()
        if variant in evaluation.names
    ]


def values_of(target: Target, evaluation: Evaluation) -> tuple[Values, Sequence[Series]]:
    """A target's figure, and what it was computed from.

    Ratios are taken within rounds, so a machine that slows down slows both.

    Raises:
        BenchError: a contender has no rounds.
    """
    ours = [evaluation.series(target.contender, scenario) for scenario in target.scenarios]
    if target.measure is Measure.REGRET:
        others: dict[str, list[Series]] = {}
        for name in target.against:
            try:
                others[name] = [evaluation.series(name, scenario) for scenario in target.scenarios]
            except BenchError:
                if not evaluation.over_budget[name]:
                    raise  # what is over the budget counts for nothing, what failed least of all
        holding = [series for name, series in others.items() if not evaluation.over_budget[name]]
        weights = [Objective.BALANCED.weights[shape.name] for shape in SHAPES]
        return _regret(ours, holding, weights), [one for each in (ours, *others.values()) for one in each]
    if target.measure.is_memory:
        is_peak = target.measure is Measure.PEAK_BYTES
        return np.array([float(one.peak_bytes if is_peak else one.resident_bytes) for one in ours[0].rounds]), ours
    scenario = target.against_scenario or target.scenarios[0]
    if target.measure is Measure.CEILING_SHARE:
        products = [evaluation.series(key, scenario) for key in target.against if key in evaluation.names]
        if not products:
            raise BenchError(evaluation.absent.get(target.against[0], "no product was measured"))
        speeds, *ceilings = _common([ours[0].speeds, *(one.speeds for one in products)])
        return speeds * evaluation.run.model.flop_per_token / np.max(ceilings, axis=0), [*ours, *products]
    theirs = evaluation.series(target.against[0], scenario)
    is_throughput = target.measure is Measure.THROUGHPUT
    mine, other = _common([one.throughputs if is_throughput else one.speeds for one in (ours[0], theirs)])
    return mine / other, [*ours, theirs]


def _regret(ours: Sequence[Series], others: Sequence[Sequence[Series]], weights: Sequence[float]) -> Values:
    """Our time by that of the fastest of all, ourselves included: a weighted sum over shapes, each in parts of ours.

    All are by shape; `others` are of every other plan within budget, and the weights add up to 1.
    """
    times = [1.0]
    for shapes in others:
        parts = [np.divide(*_common([a.speeds, b.speeds])) for a, b in zip(ours, shapes, strict=True)]
        times.append(float(np.median(np.tensordot(weights, _common(parts), 1))))
    return np.array([1 / min(times)])


def _common(found: Iterable[Values]) -> list[Values]:
    """Rounds that all have."""
    values = list(found)
    return [one[: min(map(len, values))] for one in values]


def _shown(target: Target, value: float) -> str:
    return f"{value / 1e6:.0f} MB" if target.measure.is_memory else f"{value:.2f}"


def _raw(series: Sequence[Series], evaluation: Evaluation) -> str:
    """A contender's medians at the scenarios of a target."""
    first, name = series[0], series[0].name
    if first.call_work == FLOP:
        return f"{name} {np.median(first.speeds) / 1e12:.3f} TOP/s"
    times_ms = [f"{1e3 * np.median([s for one in each.rounds for s in one.seconds]):.1f}" for each in series]
    speeds = [f"{np.median(each.throughputs):.0f}" for each in series if each.call_work > 1]
    over = evaluation.over_budget.get(name, ())
    note = f" (over budget: {' '.join('; '.join(over).split())})" if over else ""
    tokens = f", {' · '.join(speeds)} tokens/s" if speeds else ""
    return f"{name} {' · '.join(times_ms)} ms{tokens}{note}"
