"""From a run's raw values to tables: what one wants to see before the report, and whether targets are reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import median

from m3_bench.documents import Round, Run
from m3_bench.errors import BenchError
from m3_bench.figures import Place, PlacedRun, figures_of
from m3_bench.report.page import Cell, Table, printed
from m3_bench.report.tables import matrix, p50_cell, speed_cell, speed_per_core_cell
from m3_bench.run.run import named
from m3_bench.scenarios import Measure, ProcessorClass, Target
from m3_bench.workers.gemm import FLOP
from m3_export.plan.costs import Objective

HEAD = ("target", "limit", "best", "median", "met", "medians")
OverBudget = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Figure:
    """A measured figure: at its best, and in the middle of the rounds, which decides."""

    best: float
    median: float


@dataclass(frozen=True)
class Series:
    """A contender's rounds at a scenario, with the work of a call and of a round.

    Work is tokens, of a product FLOP, of a start the start.
    """

    name: str
    rounds: tuple[Round, ...]
    call_work: int
    round_work: int
    is_parallel: bool = False

    @property
    def round_speeds(self) -> list[float]:
        """Work per second of the median call of each round."""
        return [median(self.call_work / seconds for seconds in one.seconds) for one in self.rounds]

    @property
    def best_speed(self) -> float:
        """Work per second of the fastest call."""
        return max(self.call_work / seconds for one in self.rounds for seconds in one.seconds)

    @property
    def throughputs(self) -> list[float]:
        """Work of a round by its time, all calls together."""
        return [self.round_work / (one.wall_s if self.is_parallel else sum(one.seconds)) for one in self.rounds]


@dataclass(frozen=True)
class Evaluation:
    """What targets are held against.

    Attributes:
        run: the raw values.
        names: of contenders, by what targets call them.
        absent: why others are not there, by what targets call them.
        over_budget: what of INT8 variants is over budget, by name; for regret.
        processor: whose limits count.
        is_small_model: see `Target.small_limits`.
    """

    run: Run
    names: Mapping[str, str]
    absent: Mapping[str, str]
    over_budget: OverBudget
    processor: ProcessorClass
    is_small_model: bool

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
        if contender in self.run.products:
            return Series(contender.name, found.rounds, FLOP, FLOP * len(found.rounds[0].seconds))
        if scenario.is_start:
            return Series(contender.name, found.rounds, 1, 1)
        is_parallel = scenario.clients * scenario.processes > 1
        return Series(contender.name, found.rounds, scenario.tokens, scenario.round_tokens, is_parallel)


def run_table(run: Run) -> str:
    """Markdown: scenarios down, contenders across; time of a call, tokens per second, and what was not measured."""
    figures = figures_of([PlacedRun(run, Place(""), "")])
    found = (
        matrix("Latency of a call, p50", figures, p50_cell),
        matrix("Tokens per second", figures, speed_cell),
        matrix("Tokens per second of a core", figures, speed_per_core_cell),
    )
    return "\n".join([printed(table for table in found if table.rows), "", *(f"* {gap}" for gap in figures.gaps)])


def target_table(targets: Sequence[Target], evaluation: Evaluation) -> tuple[str, bool]:
    """A Markdown table of targets, and whether every one was measured."""
    rows, is_whole = [], True
    for target in [one for each in targets for one in _expanded(each, evaluation)]:
        limit = target.limit(evaluation.processor, is_small_model=evaluation.is_small_model)
        row = [f"{target.name}: {target.title}", f"{'≤' if target.measure.is_at_most else '≥'} {_value(target, limit)}"]
        try:
            figure, series = figure_of(target, evaluation)
        except BenchError as error:
            row += ["–", "–", "–", str(error)[:300]]
            is_whole = False
        else:
            over = evaluation.over_budget.get(evaluation.names[target.contender], ())
            is_met = target.is_met_by(figure.median, limit) and not (target.measure is Measure.REGRET and over)
            raw = (_raw(list(of_one), evaluation) for _, of_one in groupby(series, lambda one: one.name))
            row += [_value(target, figure.best), _value(target, figure.median), "yes" if is_met else "no"]
            row.append("; ".join(raw))
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


def figure_of(target: Target, evaluation: Evaluation) -> tuple[Figure, Sequence[Series]]:
    """A target's figure and what it was computed from.

    Raises:
        BenchError: a contender has no rounds.
    """
    ours = [evaluation.series(target.contender, scenario) for scenario in target.scenarios]
    if target.measure is Measure.REGRET:
        holding = [name for name in target.against if not evaluation.over_budget[name]]
        others = [[evaluation.series(name, scenario) for scenario in target.scenarios] for name in target.against]
        counted = [each for each, name in zip(others, target.against, strict=True) if name in holding]
        weights = [Objective.BALANCED.weights[scenario] for scenario in target.scenarios]
        return regret(ours, counted, weights), [one for each in (ours, *others) for one in each]
    if target.measure.is_memory:
        return _memory(ours[0], is_peak=target.measure is Measure.PEAK_BYTES), ours
    scenario = target.against_scenario or target.scenarios[0]
    if target.measure is Measure.CEILING_SHARE:
        products = [evaluation.series(key, scenario) for key in target.against if key in evaluation.names]
        if not products:
            raise BenchError(evaluation.absent.get(target.against[0], "no product was measured"))
        return ceiling_share(ours[0], products, evaluation.run.model.flop_per_token), [*ours, *products]
    theirs = evaluation.series(target.against[0], scenario)
    return _ratio(ours[0], theirs, is_throughput=target.measure is Measure.THROUGHPUT), [*ours, theirs]


def _ratio(ours: Series, theirs: Series, *, is_throughput: bool) -> Figure:
    """How many times as fast we are.

    `median` is the median over rounds of the ratio within the round, so a machine that slows down slows both. `best` is
    our fastest call (or round) by theirs.
    """
    if is_throughput:
        rounds, best = (ours.throughputs, theirs.throughputs), max(ours.throughputs) / max(theirs.throughputs)
    else:
        rounds, best = (ours.round_speeds, theirs.round_speeds), ours.best_speed / theirs.best_speed
    return Figure(best, median(a / b for a, b in zip(*rounds, strict=False)))


def ceiling_share(ours: Series, products: Sequence[Series], flop_per_token: float) -> Figure:
    """The share of the fastest product that encoding reaches, round by round; of several the highest counts."""
    rounds = zip(ours.round_speeds, *(one.round_speeds for one in products), strict=False)
    best = ours.best_speed * flop_per_token / max(one.best_speed for one in products)
    return Figure(best, median(speed * flop_per_token / max(ceilings) for speed, *ceilings in rounds))


def regret(ours: Sequence[Series], others: Sequence[Sequence[Series]], weights: Sequence[float]) -> Figure:
    """Our time by that of the fastest of all, ourselves included: a weighted sum over shapes, each in parts of ours.

    Args:
        ours: by shape.
        others: of everybody who counts, by shape.
        weights: of the shapes, 1 together.
    """

    def parts(shapes: Sequence[Series]) -> tuple[float, float]:
        """The weighted time of somebody in parts of ours: best, and median over rounds."""
        best = sum(w * mine.best_speed / one.best_speed for w, one, mine in zip(weights, shapes, ours, strict=True))
        by_shape = [
            [w * a / b for a, b in zip(mine.round_speeds, one.round_speeds, strict=False)]
            for w, one, mine in zip(weights, shapes, ours, strict=True)
        ]
        return best, median(map(sum, zip(*by_shape, strict=False)))

    found = [parts(shapes) for shapes in others]
    return Figure(1 / min([1.0, *(best for best, _ in found)]), 1 / min([1.0, *(middle for _, middle in found)]))


def _memory(ours: Series, *, is_peak: bool) -> Figure:
    found = [float(one.peak_bytes if is_peak else one.resident_bytes) for one in ours.rounds]
    return Figure(min(found), median(found))


def _value(target: Target, value: float) -> str:
    return f"{value / 1e6:.0f} MB" if target.measure.is_memory else f"{value:.2f}"


def _raw(series: Sequence[Series], evaluation: Evaluation) -> str:
    """A contender's medians at the scenarios of a target."""
    first, name = series[0], series[0].name
    if first.call_work == FLOP:
        return f"{name} {median(first.round_speeds) / 1e12:.3f} TOP/s"
    times = [median(seconds for one in each.rounds for seconds in one.seconds) for each in series]
    speeds = [f"{median(each.throughputs):.0f}" for each in series if each.call_work > 1]
    over = evaluation.over_budget.get(name, ())
    note = f" (over budget: {'; '.join(over)})" if over else ""
    tokens = f", {' · '.join(speeds)} tokens/s" if speeds else ""
    return f"{name} {' · '.join(f'{seconds * 1e3:.1f}' for seconds in times)} ms{tokens}{note}"
