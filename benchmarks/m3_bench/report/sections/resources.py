"""Memory, starts, cost, and the share of the processor's ceiling."""

from collections.abc import Iterator
from statistics import median

from m3_bench import stats
from m3_bench.compare import machines, words
from m3_bench.compare.figures import Board, Figure, Who
from m3_bench.report import cells, pictures
from m3_bench.report.choice import Choice
from m3_bench.report.inputs import Inputs, PlacedRoofline
from m3_bench.report.page import NOTHING, Cell, Section, Table
from m3_bench.report.sections.speed import named


def cost(inputs: Inputs, choice: Choice) -> Section | None:
    """What a million tokens cost; None without prices."""
    board, load = inputs.board, choice.load
    found = [one for one in board.at(load.name) if one.cost_per_million_tokens is not None] if load else []
    if load is None or not found:
        return None
    found.sort(key=_cost)
    bars = [(one, _cost(one), words.money(_cost(one), inputs.currency)) for one in found]
    caption = f"{load.title}, machine kept busy. Lower is better."
    picture = pictures.bars_of("cost", "Cost of a million tokens", caption, inputs.currency, bars, board)
    priced = [s for s in board.scenarios if any(f.cost_per_million_tokens is not None for f in board.at(s.name))]
    whos = [who for who in board.whos if who.placed.price_per_hour is not None and board.of(who.label)]
    rows = []
    for scenario in priced:
        figures = {figure.who.label: figure for figure in board.at(scenario.name)}
        row = (cells.cost(figures[w.label], "") if w.label in figures else NOTHING for w in whos)
        rows.append((Cell(scenario.title), *row))
    prices = {f"{who.machine} {words.price(who.placed.price_per_hour, inputs.currency)}" for who in whos}
    return Section(
        anchor="cost",
        title="Cost",
        intro=f"The price of an hour ÷ the tokens of an hour. Prices as given: {'; '.join(sorted(prices))} an hour.",
        pictures=(picture,) if picture is not None else (),
        tables=(
            Table(
                f"Cost of a million tokens, {inputs.currency}", ("", *(named(board, who) for who in whos)), tuple(rows)
            ),
        ),
    )


def _cost(figure: Figure) -> float:
    return figure.cost_per_million_tokens or 0.0


def memory(board: Board) -> Section | None:
    """Memory and starts; None where nothing was measured."""
    if not board.figures:
        return None
    picture = pictures.memory_by_length(board)
    rows = tuple(_memory_row(board, who) for who in board.whos if board.of(who.label))
    return Section(
        anchor="memory",
        title="Memory and start",
        intro=(
            "Each scenario ran in a process of its own. Memory is what was resident, mapped weights that were touched "
            "included; of an accelerator it is the device's. Loading is from the start of the process, files cached."
        ),
        pictures=(picture,) if picture is not None else (),
        tables=(Table("Memory and start", ("", "weights on disk", "highest peak", "at", "loading"), rows),),
    )


def _memory_row(board: Board, who: Who) -> tuple[Cell, ...]:
    found = board.of(who.label)
    highest = max(found, key=lambda one: one.peak_bytes)
    loads = [one.measured.load_s for one in found]
    weights = who.contender.size_bytes
    return (
        Cell(who.label),
        Cell(words.size(weights), who.place.below("size_bytes"), "bytes ÷ 10⁶") if weights else NOTHING,
        cells.memory(highest),
        Cell(highest.scenario.title) if highest.peak_bytes else NOTHING,
        Cell(words.seconds(median(loads)), who.place.below("scenarios"), f"median of {len(loads)} processes"),
    )


def ceiling(inputs: Inputs) -> Section | None:
    """Tokens per second as a share of the fastest matrix product; None without a roofline."""
    if not inputs.rooflines:
        return None
    return Section(
        anchor="ceiling",
        title="How much of the processor is used",
        intro=(
            "The fastest exact matrix product (2048 × 1024 × 4096) that an engine does in a contender's precision is "
            "its ceiling. The share is tokens/s × FLOP per token ÷ ceiling; attention itself is not counted."
        ),
        tables=(*_shares(inputs), *(_ceilings(one) for one in inputs.rooflines)),
        notes=tuple(_ceiling_notes(inputs)),
    )


def _shares(inputs: Inputs) -> Iterator[Table]:
    """Each scenario of one caller: a multiplier is used by one call."""
    for scenario in inputs.board.scenarios:
        rows = [row for figure in inputs.board.at(scenario.name) if (row := _share(figure, inputs)) is not None]
        if rows and scenario.clients == 1:
            head = ("", "multiplier", "tokens/s", "tokens/s per core", "share of its ceiling")
            yield Table(f"Share of the ceiling: {scenario.title}", head, tuple(rows))


def _share(figure: Figure, inputs: Inputs) -> tuple[Cell, ...] | None:
    model, roofline = inputs.model, _roofline_of(figure, inputs)
    multiplier = stats.multiplier_of(figure.who.contender.precision)
    top = None if roofline is None else stats.ceiling_flop_per_s(roofline.document.ceilings, multiplier)
    if model is None or not model.flop_per_token or top is None:
        return None
    share = stats.ceiling_share(figure.tokens_per_s.median, model.flop_per_token, top)
    speed = words.number(figure.tokens_per_s.median)
    how = f"{speed} tokens/s × {model.flop_per_token:.4g} FLOP ÷ {top:.4g} FLOP/s"
    named = Cell(figure.who.label), Cell(multiplier), cells.speed(figure), cells.speed_per_core(figure)
    return (*named, Cell(words.percent(share), figure.place, how))


def _roofline_of(figure: Figure, inputs: Inputs) -> PlacedRoofline | None:
    run = figure.who.placed.run
    return next(
        (
            one
            for one in inputs.rooflines
            if machines.is_same(one.document.machine, run.machine) and one.document.threads == run.threads
        ),
        None,
    )


def _ceilings(one: PlacedRoofline) -> Table:
    rows = []
    for number, found in enumerate(one.document.ceilings):
        place = one.place.below("ceilings", number, "flop_per_s")
        how = f"median of {len(found.flop_per_s)} products"
        value = Cell(f"{median(found.flop_per_s) / 1e9:.0f} GFLOP/s", place, how) if found.flop_per_s else NOTHING
        rows.append((Cell(f"{found.engine} {found.precision}"), value, Cell(found.reason)))
    caption = f"Ceilings of {one.document.machine.cpu}, {one.document.threads} threads"
    return Table(caption, ("", "median", "does not count because"), tuple(rows))


def _ceiling_notes(inputs: Inputs) -> Iterator[str]:
    if inputs.model is not None and not inputs.model.flop_per_token:
        yield "The runs do not say how many FLOP a token takes, so there is no share."
    for one in inputs.rooflines:
        runs = [
            who.placed.run
            for who in inputs.board.whos
            if machines.is_same(who.placed.run.machine, one.document.machine)
        ]
        if inputs.board.whos and not any(run.threads == one.document.threads for run in runs):
            yield f"No run was on the machine and with the threads of {one.place.file}, so it gives no share."
