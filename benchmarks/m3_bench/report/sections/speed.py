"""Latency and throughput, side by side."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median

from m3_bench import stats
from m3_bench.compare import words
from m3_bench.compare.figures import Board, Figure, Who
from m3_bench.documents import Round, Scenario
from m3_bench.report import cells, pictures
from m3_bench.report.choice import Choice
from m3_bench.report.page import NOTHING, Cell, Picture, Section, Table

_HOW = (
    "Times are from texts to numbers of all heads that were asked for, tokenising included. Latency is over all calls "
    "of all rounds; throughput is the median over rounds. Point at a number to see its raw values; it links to their "
    "file."
)


def section(board: Board, choice: Choice) -> Section | None:
    """The section; None where nothing was measured."""
    if not board.figures:
        return None
    drawn = (
        pictures.latency_by_length(board),
        pictures.throughput_by_batch(board),
        pictures.throughput_by_clients(board),
        _speed_bars(board, choice.load),
    )
    tables = [
        _matrix("Latency of a call, p50", board, lambda one: one.latency.p50_s, min, _p50),
        _matrix("Tokens per second", board, lambda one: one.tokens_per_s.median, max, cells.speed),
        *_within_rounds(board, choice),
        *(_details(board, scenario) for scenario in board.scenarios),
    ]
    return Section(
        anchor="speed",
        title="Latency and throughput",
        intro=_HOW,
        pictures=tuple(picture for picture in drawn if picture is not None),
        tables=tuple(tables),
        notes=tuple(f"Not measured: {gap.who.label} at {gap.scenario}: {gap.reason}" for gap in board.gaps),
    )


def named(board: Board, who: Who) -> str:
    """A contender, with its machine where there are several."""
    if who.placed.is_reference:
        return f"{who.label}\nreference"
    return f"{who.label}\n{who.machine}" if len(board.machines) > 1 else who.label


def _p50(figure: Figure, *, is_strong: bool = False) -> Cell:
    return cells.latency(figure, 50, is_strong=is_strong)


def _matrix(
    caption: str,
    board: Board,
    value_of: Callable[[Figure], float],
    best: Callable[[Sequence[float]], float],
    cell_of: Callable[..., Cell],
) -> Table:
    """Scenarios by contenders; the best of a row is strong."""
    whos = [who for who in board.whos if board.of(who.label)]
    rows = []
    for scenario in board.scenarios:
        found = {figure.who.label: figure for figure in board.at(scenario.name)}
        top = best([value_of(figure) for figure in found.values()])
        row = (
            cell_of(found[who.label], is_strong=len(found) > 1 and value_of(found[who.label]) == top)
            if who.label in found
            else NOTHING
            for who in whos
        )
        rows.append((Cell(scenario.title), *row))
    return Table(caption, ("", *(named(board, who) for who in whos)), tuple(rows))


def _within_rounds(board: Board, choice: Choice) -> Iterator[Table]:
    """Our contender ÷ each other of its run: they took turns, so noise of the machine cancels."""
    ours = choice.ours
    others = [w for w in board.whos if ours is not None and w.placed == ours.placed and w.label != ours.label]
    if ours is None or not others:
        return
    rows = []
    for mine in board.of(ours.label):
        theirs = {figure.who.label: figure for figure in board.at(mine.scenario.name)}
        row = (_ratio(mine, theirs.get(who.label)) for who in others)
        rows.append((Cell(mine.scenario.title), *row))
    caption = f"Tokens per second of {ours.label} ÷ those of the others, round by round of the same run (interval)"
    yield Table(caption, ("", *(f"÷ {who.label}" for who in others)), tuple(rows))


def _ratio(mine: Figure, theirs: Figure | None) -> Cell:
    if theirs is None:
        return NOTHING
    found = stats.ratio(mine.tokens_per_s.values, theirs.tokens_per_s.values)
    return cells.ratio(found, theirs.place)


def _details(board: Board, scenario: Scenario) -> Table:
    """Everything about a scenario."""
    found = board.at(scenario.name)
    has_parts = any(one.engine_s for figure in found for one in figure.measured.rounds)
    head = [
        "",
        "p50",
        "p95",
        "p99",
        "tokens/s",
        "per core",
        "interval",
        "texts/s",
        "CPU-s per M tokens",
        "peak memory",
        "first call",
    ]
    head += ["tokenising", "engine"] if has_parts else []
    rows = []
    for figure in found:
        row = [
            Cell(named(board, figure.who)),
            *(cells.latency(figure, percent) for percent in (50, 95, 99)),
            cells.speed(figure),
            cells.speed_per_core(figure),
            cells.spread(figure),
            cells.texts(figure),
            cells.cpu_time(figure),
            cells.memory(figure),
            _first_call(figure),
        ]
        if has_parts:
            row.append(_part(figure, "tokenise_s", lambda one: one.tokenise_s))
            row.append(_part(figure, "engine_s", lambda one: one.engine_s))
        rows.append(tuple(row))
    is_told = scenario.clients == 1 or "caller" in scenario.title
    clients = "" if is_told else f", {scenario.clients} callers"
    caption = f"{scenario.title}{clients}: {' + '.join(scenario.heads)}, {found[0].latency.calls} calls"
    return Table(caption, tuple(head), tuple(rows), is_detail=True)


def _first_call(figure: Figure) -> Cell:
    place = figure.who.place.below("scenarios", figure.who.contender.scenarios.index(figure.measured), "first_s")
    return Cell(words.seconds(figure.measured.first_s), place, "after loading, counted in no round")


def _part(figure: Figure, name: str, seconds_of: Callable[[Round], Sequence[float]]) -> Cell:
    """Which share of a call a part takes; the engine and the tokenizer may overlap."""
    pairs = [pair for one in figure.measured.rounds for pair in zip(seconds_of(one), one.seconds, strict=False)]
    shares = [part_s / call_s for part_s, call_s in pairs if call_s > 0]
    return (
        Cell(words.percent(median(shares)), figure.place, f"{name} ÷ seconds, median of calls") if shares else NOTHING
    )


def _speed_bars(board: Board, load: Scenario | None) -> Picture | None:
    found = [] if load is None else sorted(board.at(load.name), key=lambda one: -one.tokens_per_s.median)
    drawn = [(one, one.tokens_per_s.median, f"{words.number(one.tokens_per_s.median)} tokens/s") for one in found]
    title = "" if load is None else f"Throughput: {load.title}"
    return pictures.bars_of("throughput", title, "Median over rounds. Higher is better.", "tokens/s", drawn, board)
