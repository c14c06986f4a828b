"""The figures of runs: every contender at every scenario, each with the place of its raw values."""

from collections.abc import Sequence
from dataclasses import dataclass

from m3_bench import stats
from m3_bench.compare import machines, prices
from m3_bench.documents import Comparison, Contender, Prices, Run, Scenario, ScenarioRun
from m3_bench.machine import Machine
from m3_bench.stats import Interval, Latency


@dataclass(frozen=True)
class Place:
    """Where a value stands: a file, and a JSON pointer (RFC 6901) in it."""

    file: str
    pointer: str

    def below(self, *keys: str | int) -> "Place":
        """A place further down.

        >>> Place("a.json", "/runs/0").below("contenders", 1)
        Place(file='a.json', pointer='/runs/0/contenders/1')
        """
        escaped = (str(key).replace("~", "~0").replace("/", "~1") for key in keys)
        return Place(self.file, "/".join([self.pointer, *escaped]))


@dataclass(frozen=True)
class PlacedRun:
    """A run, where it stands, and what an hour of its machine costs; `number` is its place in a comparison, from 0."""

    run: Run
    place: Place
    source: str
    is_reference: bool = False
    price_per_hour: float | None = None
    number: int | None = None


@dataclass(frozen=True)
class Who:
    """A contender of a run.

    Attributes:
        label: unique among those who are compared.
        machine: a short name of its machine, unique likewise.
        contender: what it is.
        placed: its run.
        place: where it stands.
    """

    label: str
    machine: str
    contender: Contender
    placed: PlacedRun
    place: Place

    @property
    def is_ours(self) -> bool:
        """Whether it is a variant of a bundle and not what it is compared with."""
        return self.contender.is_ours and not self.placed.is_reference


@dataclass(frozen=True)
class Figure:
    """A contender at a scenario.

    Attributes:
        who: the contender.
        scenario: what it was asked for.
        measured: the raw values.
        place: where they stand.
        latency: of single calls.
        tokens_per_s: over rounds.
        texts_per_s: over rounds.
        cpu_s_per_million_tokens: None where the system does not say.
        cost_per_million_tokens: None without a price.
        peak_bytes: the most resident memory in this scenario; 0 where the system does not say.
        doubts: why the figures are not to be trusted; empty if they are.
    """

    who: Who
    scenario: Scenario
    measured: ScenarioRun
    place: Place
    latency: Latency
    tokens_per_s: Interval
    texts_per_s: Interval
    cpu_s_per_million_tokens: float | None
    cost_per_million_tokens: float | None
    peak_bytes: int
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class Gap:
    """A contender that could not be measured at a scenario, and why."""

    who: Who
    scenario: str
    reason: str
    place: Place


@dataclass(frozen=True)
class Board:
    """Everybody, what they reached, and what is missing."""

    whos: tuple[Who, ...]
    machines: tuple[Machine, ...]
    figures: tuple[Figure, ...]
    gaps: tuple[Gap, ...]

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """Scenarios that somebody was measured at, each once, in the order of the runs."""
        found: dict[str, Scenario] = {}
        for figure in self.figures:
            found.setdefault(figure.scenario.name, figure.scenario)
        return tuple(found.values())

    def at(self, scenario: str) -> tuple[Figure, ...]:
        """Figures of a scenario."""
        return tuple(figure for figure in self.figures if figure.scenario.name == scenario)

    def of(self, label: str) -> tuple[Figure, ...]:
        """Figures of a contender."""
        return tuple(figure for figure in self.figures if figure.who.label == label)


def runs_of(comparison: Comparison, place: Place) -> tuple[PlacedRun, ...]:
    """The reference's run and the others, with their prices."""
    names = [source.name for source in comparison.sources]
    first = PlacedRun(
        run=comparison.reference,
        place=place.below("reference"),
        source=names[0] if names else place.file,
        is_reference=True,
        price_per_hour=_price(comparison.reference, comparison.prices),
    )
    others = (
        PlacedRun(
            run=run,
            place=place.below("runs", number),
            source=names[number + 1] if number + 1 < len(names) else place.file,
            price_per_hour=_price(run, comparison.prices),
            number=number,
        )
        for number, run in enumerate(comparison.runs)
    )
    return (first, *others)


def _price(run: Run, given: Prices) -> float | None:
    return prices.of(run.machine, given)


def board(runs: Sequence[PlacedRun]) -> Board:
    """All figures of some runs."""
    everywhere = machines.distinct([placed.run.machine for placed in runs])
    whos = _whos(runs, everywhere)
    figures: list[Figure] = []
    gaps: list[Gap] = []
    for who in whos:
        scenarios = {scenario.name: scenario for scenario in who.placed.run.scenarios}
        for number, measured in enumerate(who.contender.scenarios):
            place = who.place.below("scenarios", number)
            scenario = scenarios.get(measured.scenario)
            if reason := _unusable(measured, scenario):
                gaps.append(Gap(who, measured.scenario, reason, place))
            elif scenario is not None:
                figures.append(_figure(who, scenario, measured, place))
    return Board(whos, everywhere, tuple(figures), tuple(gaps))


def _whos(runs: Sequence[PlacedRun], everywhere: Sequence[Machine]) -> tuple[Who, ...]:
    names = [contender.name for placed in runs for contender in placed.run.contenders]
    found: list[Who] = []
    for placed in runs:
        for number, contender in enumerate(placed.run.contenders):
            alone = names.count(contender.name) == 1
            label = contender.name if alone else f"{contender.name} ({placed.source})"
            taken = sum(label == who.label or who.label.startswith(f"{label} #") for who in found)
            found.append(
                Who(
                    label=f"{label} #{taken + 1}" if taken else label,
                    machine=machines.name_of(placed.run.machine, everywhere),
                    contender=contender,
                    placed=placed,
                    place=placed.place.below("contenders", number),
                )
            )
    return tuple(found)


def _unusable(measured: ScenarioRun, scenario: Scenario | None) -> str:
    if measured.error:
        return measured.error
    if scenario is None:
        return "the run does not say what this scenario is"
    usable = [one for one in measured.rounds if one.seconds and stats.busy_s(one, scenario.clients) > 0]
    if not usable or len(usable) != len(measured.rounds):
        return "a round has no calls" if measured.rounds else "no round was finished"
    return "" if scenario.tokens else "the scenario has no tokens"


def _figure(who: Who, scenario: Scenario, measured: ScenarioRun, place: Place) -> Figure:
    speed = stats.tokens_per_s(measured.rounds, scenario)
    price = who.placed.price_per_hour
    return Figure(
        who=who,
        scenario=scenario,
        measured=measured,
        place=place.below("rounds"),
        latency=stats.latency(measured.rounds),
        tokens_per_s=speed,
        texts_per_s=stats.texts_per_s(measured.rounds, scenario),
        cpu_s_per_million_tokens=stats.cpu_s_per_million_tokens(measured.rounds, scenario),
        cost_per_million_tokens=None if price is None else stats.cost_per_million_tokens(price, speed.median),
        peak_bytes=max(one.peak_bytes for one in measured.rounds),
        doubts=stats.doubts(speed.values),
    )
