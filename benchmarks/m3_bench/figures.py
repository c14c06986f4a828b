"""The figures of runs: every contender at every scenario."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from m3_bench import stats
from m3_bench.documents import Compared, Comparison, Contender, Round, Run, Scenario, ScenarioRun
from m3_bench.stats import Interval, Latency


@dataclass(frozen=True)
class PlacedRun:
    """A run, the name of the file it was measured into, and what an hour of its machine costs."""

    run: Run
    source: str
    is_reference: bool = False
    price_per_hour: float | None = None


@dataclass(frozen=True)
class Entry:
    """A contender of a run; its label is unique among those that are shown.

    `order` counts contenders that are no references, from 0; it is -1 for these.
    """

    label: str
    order: int
    contender: Contender
    placed: PlacedRun

    @property
    def is_ours(self) -> bool:
        """Whether it is a variant of a bundle and not what it is compared with."""
        return self.contender.is_ours and not self.placed.is_reference


@dataclass(frozen=True)
class Measurement:
    """A contender at a scenario."""

    entry: Entry  # the contender
    scenario: Scenario  # what was measured
    measured: ScenarioRun  # the raw values
    latency: Latency  # of single calls
    tokens_per_s: Interval  # over rounds
    warning: str  # why the figures are not to be trusted; empty if they are

    @property
    def rounds(self) -> tuple[Round, ...]:
        """The raw values of each round."""
        return self.measured.rounds

    @property
    def cost_per_million_tokens(self) -> float | None:
        """None without a price."""
        price = self.entry.placed.price_per_hour
        return None if price is None else stats.cost_per_million_tokens(price, self.tokens_per_s.median)

    @property
    def peak_bytes(self) -> int:
        """The most resident memory in this scenario; 0 where the system does not report it."""
        return max(one.peak_bytes for one in self.rounds)


@dataclass(frozen=True)
class Parity:
    """A contender's parity with the reference of this name."""

    entry: Entry
    compared: Compared
    reference: str


@dataclass(frozen=True)
class Figures:
    """All contenders, what was measured of them, and why the rest could not be measured."""

    entries: tuple[Entry, ...]
    values: tuple[Measurement, ...]
    gaps: tuple[str, ...]

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """Scenarios with a figure, each once, in the order of the runs."""
        found: dict[str, Scenario] = {}
        for figure in self.values:
            found.setdefault(figure.scenario.name, figure.scenario)
        return tuple(found.values())

    @property
    def measured(self) -> tuple[Entry, ...]:
        """Contenders with a figure."""
        return tuple(entry for entry in self.entries if self.of(entry))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why figures are not to be trusted, each reason once with the figures that it is about."""
        found: dict[str, list[str]] = {}
        for one in self.values:
            if one.warning:
                found.setdefault(one.warning, []).append(f"{one.entry.label}, {one.scenario.title}")
        more = {warning: f" and {len(of) - 2} more" if len(of) > 2 else "" for warning, of in found.items()}
        return tuple(f"{'; '.join(of[:2])}{more[warning]}: {warning}." for warning, of in found.items())

    def at(self, scenario: Scenario | None) -> tuple[Measurement, ...]:
        """Figures of a scenario; none of None."""
        return tuple(f for f in self.values if scenario is not None and f.scenario.name == scenario.name)

    def of(self, entry: Entry) -> tuple[Measurement, ...]:
        """Figures of a contender."""
        return tuple(figure for figure in self.values if figure.entry.label == entry.label)

    def get(self, scenario: Scenario | None, entry: Entry | None) -> Measurement | None:
        """A contender's figure at a scenario; None if there is none."""
        return next((f for f in self.at(scenario) if entry is not None and f.entry.label == entry.label), None)


def runs_of(comparison: Comparison, file: str) -> tuple[PlacedRun, ...]:
    """The reference's run and the others, with their prices; `file` names a source that the comparison does not."""
    names = [source.name for source in comparison.sources] + [file] * (len(comparison.runs) + 1)
    return tuple(
        PlacedRun(run, names[number], number == 0, comparison.prices.per_hour(run.machine))
        for number, run in enumerate((comparison.reference, *comparison.runs))
    )


def parities_of(comparison: Comparison, entries: Sequence[Entry]) -> Iterator[Parity]:
    """Yield the parities of a comparison; `entries` are contenders, among them those of its runs."""
    names = ", ".join(contender.name for contender in comparison.reference.contenders)
    for one in comparison.parity:
        run = comparison.runs[one.run]
        for entry in entries:
            if entry.contender.name == one.contender and entry.placed.run == run:
                yield Parity(entry, one, names)
                break


def figures_of(runs: Sequence[PlacedRun]) -> Figures:
    """All figures of some runs."""
    entries = _entries(runs)
    values: list[Measurement] = []
    gaps: list[str] = []
    for entry in entries:
        scenarios = {scenario.name: scenario for scenario in entry.placed.run.scenarios}
        for measured in entry.contender.scenarios:
            scenario = scenarios.get(measured.scenario)
            reason = _unusable(measured, scenario)
            if reason or scenario is None:
                gaps.append(f"Not measured: {entry.label}, {measured.scenario}: {' '.join(reason.split())}")
                continue
            speed = stats.tokens_per_s(measured.rounds, scenario)
            latency = Latency.of([seconds for one in measured.rounds for seconds in one.seconds])
            values.append(Measurement(entry, scenario, measured, latency, speed, stats.warning_of(speed.values)))
    return Figures(entries, tuple(values), tuple(gaps))


def _entries(runs: Sequence[PlacedRun]) -> tuple[Entry, ...]:
    """Contenders of one name are labelled with their files, and within one file with numbers."""
    names = [contender.name for placed in runs for contender in placed.run.contenders]
    found: list[Entry] = []
    for placed in runs:
        for contender in placed.run.contenders:
            label = contender.name if names.count(contender.name) == 1 else f"{contender.name} ({placed.source})"
            taken = sum(label == other.label or other.label.startswith(f"{label} #") for other in found)
            order = -1 if placed.is_reference else sum(not other.placed.is_reference for other in found)
            found.append(Entry(f"{label} #{taken + 1}" if taken else label, order, contender, placed))
    return tuple(found)


def _unusable(measured: ScenarioRun, scenario: Scenario | None) -> str:
    """Why there is no figure; empty if there is one."""
    if measured.error:
        return measured.error
    if scenario is None:
        return "the run does not say what this scenario is"
    if not measured.rounds:
        return "no round was finished"
    if not all(one.seconds and stats.busy_s(one, scenario) > 0 for one in measured.rounds):
        return "a round has no calls"
    return "" if scenario.tokens else "the scenario has no tokens"
