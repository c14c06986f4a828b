"""Inputs to a page: its title, the figures that decide, and the sections in their order."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from m3_bench import formats, stats
from m3_bench.documents import Comparison, Load, Margins, Retrieval, Roofline, Scenario, Soak
from m3_bench.figures import Entry, Figures, Measurement, Parity, parities_of
from m3_bench.machine import described, distinct
from m3_bench.report import charts, tables
from m3_bench.report.inputs import Inputs
from m3_bench.report.page import NO_VALUE, Cell, Chart, Page, Section, Table, Tile
from m3_bench.report.searches import (
    INTERVALS,
    MARGINS,
    change,
    main_metric,
    margins_notes,
    margins_table,
    retrieval_notes,
    retrieval_table,
)  # fmt: skip


@dataclass(frozen=True)
class Highlights:
    """What the tiles are of; each is None where there is none."""

    ours: Entry | None  # our fastest variant that has parity, or without variants of ours the fastest other contender
    reference: Entry | None  # the first reference
    query: Scenario | None  # the shortest single text
    load: Scenario | None  # the heaviest call by one caller that most contenders were measured at


def build_page(inputs: Inputs, model: str | None = None) -> Page:
    """Compute every figure and draw every chart; `model` is what the page calls the model, None its recorded name."""
    entries = inputs.figures.entries
    parities = [parity for one in inputs.of(Comparison) for parity in parities_of(*one, entries)]
    top, soaks = _highlights(inputs.figures, parities), inputs.of(Soak)
    name = model or (inputs.model.name if inputs.model else "")
    sections = (
        _speed(inputs, top),
        _accuracy(inputs.figures, parities, top.load),
        _cost(inputs, top.load),
        _section("memory", [charts.memory_by_length(inputs.figures)], [tables.memory_table(inputs.figures)]),
        _ceiling(inputs),
        _section("load", (), (tables.load_table(*one) for one in inputs.of(Load))),
        _section("soak", [charts.memory_over_time([soak for soak, _ in soaks])], [tables.soak_table(soaks)]),
        _retrieval(inputs),
        _margins(inputs),
        _facts(inputs, name),
    )
    return Page(
        title=_title(inputs, name),
        subtitle=_subtitle(inputs),
        lead=_lead(top),
        tiles=tuple(_tiles(inputs, top, parities)),
        remarks=tuple(_remarks(inputs)),
        sections=tuple(section for section in sections if section.tables),
        files=inputs.files,
    )


def _title(inputs: Inputs, name: str) -> str:
    if not name:
        return "Retrieval" if inputs.of(Retrieval) else "Measurements"
    on_gpu = any(one.placed.is_reference and one.placed.run.machine.accelerator for one in inputs.figures.entries)
    return f"{name}: can the CPU replace the GPU?" if on_gpu else f"{name} on CPU"


def _subtitle(inputs: Inputs) -> str:
    figures = inputs.figures
    counts = [f"{len(figures.entries)} contenders", f"{len(figures.scenarios)} scenarios"] if figures.entries else []
    machines = [machine.accelerator or machine.cpu for machine in figures.machines]
    return " · ".join([*counts, *machines, *(f"dataset {found.dataset.name}" for found, _ in inputs.of(Retrieval))])


def _lead(top: Highlights) -> str:
    if top.ours is None:
        return ""
    threads = top.ours.placed.run.threads
    where = top.ours.machine + (f" with {threads} thread{'s' * (threads > 1)}" if threads else "")
    return f"{top.ours.label} on {where}" + (f", beside {top.reference.label}" if top.reference else "")


def _highlights(figures: Figures, parities: list[Parity]) -> Highlights:
    whole = charts.with_most_heads(figures.scenarios)
    alone = [s for s in whole if s.clients == 1]
    loads = [s for s in alone if len(s.lengths) > 1 and len(set(s.lengths)) == 1] or alone
    load = max(loads, key=lambda s: (len(figures.at(s)), s.tokens), default=None)
    ours = [entry for entry in figures.entries if entry.is_ours]
    ours = ours or [entry for entry in figures.entries if not entry.placed.is_reference]
    with_parity = {parity.entry.label for parity in parities}
    speeds = {figure.entry.label: figure.tokens_per_s.median for figure in figures.at(load)}
    return Highlights(
        ours=max(ours, key=lambda entry: (entry.label in with_parity, speeds.get(entry.label, 0.0)), default=None),
        reference=next((entry for entry in figures.entries if entry.placed.is_reference), None),
        query=min((s for s in whole if charts.is_single(s)), key=lambda s: s.tokens, default=None),
        load=load,
    )


def _tiles(inputs: Inputs, top: Highlights, parities: list[Parity]) -> Iterator[Tile]:
    if top.ours is None:
        return
    figures, currency = inputs.figures, inputs.currency
    query, load = figures.get(top.query, top.ours), figures.get(top.load, top.ours)
    reference = figures.get(top.load, top.reference)
    if query is not None:
        against = _against(figures.get(top.query, top.reference), tables.p50_cell)
        yield Tile(f"{query.scenario.tokens}-token text, p50", tables.p50_cell(query), against)
    if load is not None:
        yield Tile(f"tokens/s, {load.scenario.title}", tables.speed_cell(load), _against(reference, tables.speed_cell))
        if load.cost_per_million_tokens is not None:
            against = _against(reference, lambda figure: tables.cost_cell(figure, currency))
            yield Tile("per million tokens", tables.cost_cell(load, currency), against)
        if reference is not None:
            yield from _fleet(load, reference, currency)
        yield from _peers(figures, load)
    for parity in [one for one in parities if one.entry == top.ours][:1]:
        yield from _kept(parity)
    yield from _worst_loss(inputs, top.ours)
    if load is not None and load.peak_bytes:
        weights = load.entry.contender.size_bytes
        notes = (Cell(f"with {formats.size(weights)} of weights"),) if weights else ()
        yield Tile(f"memory, {load.scenario.title}", tables.memory_cell(load), notes)


def _against(theirs: Measurement | None, cell_of: tables.CellOf) -> tuple[Cell, ...]:
    if theirs is None or cell_of(theirs) == NO_VALUE:
        return ()
    return Cell("against"), cell_of(theirs), Cell(f"for {theirs.entry.label}")


def _fleet(ours: Measurement, reference: Measurement, currency: str) -> Iterator[Tile]:
    """How many such machines do the work of the reference, and for how much."""
    count = math.ceil(reference.tokens_per_s.median / ours.tokens_per_s.median - 1e-9)
    price, theirs = ours.entry.placed.price_per_hour, reference.entry.placed.price_per_hour
    if count >= 2 and price is not None and theirs is not None:
        costs = f"{formats.money(count * price, currency)} an hour against {formats.price(theirs, currency)}"
        number = Cell(str(count), ours.place, "tokens/s of the reference ÷ ours, rounded up")
        yield Tile("machines for the reference's tokens/s", number, (Cell(costs),))


def _peers(figures: Figures, ours: Measurement) -> Iterator[Tile]:
    """The fastest other contender of the same run that is not ours."""
    others = [f for f in figures.at(ours.scenario) if f.entry.placed == ours.entry.placed and not f.entry.is_ours]
    if others and ours.entry.is_ours:
        best = max(others, key=lambda figure: figure.tokens_per_s.median)
        yield _split("tokens/s ÷ fastest other", tables.ratio_cell(ours, best), f"for {best.entry.label}")


def _kept(parity: Parity) -> Iterator[Tile]:
    for label, head, key in (
        ("lowest dense cosine", "dense", "cosine_min"),
        ("ColBERT cosine, 5th percentile", "colbert", "cosine_p5"),
        ("mean sparse Jaccard", "sparse", "jaccard_mean"),
    ):
        cell = tables.likeness_cell(parity, head, key)
        if cell != NO_VALUE:
            yield Tile(label, cell, (Cell(f"of {len(parity.compared.texts.dense)} texts"),))


def _worst_loss(inputs: Inputs, ours: Entry) -> Iterator[Tile]:
    """Where the same variant of the same weights loses most in retrieval against FP32."""
    losses = []
    for found, place in inputs.of(Retrieval) if ours.is_ours else ():
        bundles = {b for b, m in found.models.items() if m.weights_sha256 == ours.placed.run.model.weights_sha256}
        for number, run in enumerate(found.methods):
            if run.variant == ours.contender.name and run.bundle in bundles:
                loss = stats.loss(found.methods, run, main_metric)
                here = place.below("methods", number, "metrics", stats.MAIN_METRIC)
                losses += [(loss, here, f"{run.method} on {found.dataset.name}")] if loss else []
    if losses:
        loss, here, where = max(losses, key=lambda one: one[0].mean)
        datasets = len({place.file for _, place, _ in losses})
        words = f"{where}, the highest of {datasets} dataset{'s' * (datasets > 1)}"
        yield _split(f"loss of {stats.MAIN_METRIC} against FP32", change(loss, here), words)


def _split(label: str, cell: Cell, words: str) -> Tile:
    """The value in large letters; its interval and words below."""
    value, bracket, interval = re.split(r" ([(\[])", cell.text, maxsplit=1)
    return Tile(label, replace(cell, text=value), (Cell(f"{bracket}{interval} {words}"),))


def _remarks(inputs: Inputs) -> Iterator[str]:
    """Why the figures may not be trusted: notes of the comparisons, and noise, each once with what it is of."""
    figures = inputs.figures
    notes = list(dict.fromkeys(note for found, _ in inputs.of(Comparison) for note in found.notes))
    yield from notes
    compared = distinct(entry.placed.run.machine for entry in figures.entries if not entry.placed.is_reference)
    if len(compared) > 1 and not any(note.startswith("Runs are of") for note in notes):
        yield f"Figures are of {len(compared)} machines ({'; '.join(map(described, compared))}): each says which."
    yield from figures.doubts


def _section(
    anchor: str, drawn: Iterable[Chart | None], found: Iterable[Table], notes: Iterable[str] = (), intro: str = ""
) -> Section:
    """A part of the page, with those charts and tables that have something to show."""
    shown = tuple(table for table in found if table.rows)
    return Section(anchor, tuple(chart for chart in drawn if chart is not None), shown, tuple(notes), intro)


def _speed(inputs: Inputs, top: Highlights) -> Section:
    figures = inputs.figures
    drawn = (
        charts.latency_by_length(figures),
        charts.throughput_by_batch(figures),
        charts.throughput_by_clients(figures),
        charts.throughput(figures, top.load),
    )
    found = (
        tables.matrix("Latency of a call, p50", figures, tables.p50_cell, lambda f: f.latency.p50_s),
        tables.matrix("Tokens per second", figures, tables.speed_cell, lambda f: -f.tokens_per_s.median),
        *_within_rounds(figures, top.ours),
        *(tables.scenario_table(figures, scenario, inputs.currency) for scenario in figures.scenarios),
    )
    return _section("speed", drawn, found, figures.gaps)


def _within_rounds(figures: Figures, ours: Entry | None) -> Iterator[Table]:
    """Our contender ÷ each other of its run: they took turns, so noise of the machine cancels."""

    def cell_of(figure: Measurement) -> Cell:
        mine = figures.get(figure.scenario, ours)
        is_other = mine is not None and mine.entry != figure.entry and mine.entry.placed == figure.entry.placed
        return tables.ratio_cell(mine, figure) if mine is not None and is_other else NO_VALUE

    if ours is not None:
        caption = f"Tokens per second of {ours.label} ÷ those of the others, round by round of the same run (interval)"
        yield tables.matrix(caption, figures, cell_of)


def _accuracy(figures: Figures, parities: list[Parity], load: Scenario | None) -> Section:
    drawn = (charts.speed_and_accuracy(figures, load, parities), *charts.parity_of_texts(parities))
    return _section("accuracy", drawn, tables.parity_tables(parities))


def _cost(inputs: Inputs, load: Scenario | None) -> Section:
    figures, currency = inputs.figures, inputs.currency
    prices = {
        f"{one.machine} {formats.price(one.placed.price_per_hour, currency)}"
        for one in figures.measured
        if one.placed.price_per_hour is not None
    }
    intro = f"Prices as given: {'; '.join(sorted(prices))} an hour."
    found = tables.matrix(f"Cost of a million tokens, {currency}", figures, lambda f: tables.cost_cell(f, ""))
    return _section("cost", [charts.cost(figures, load, currency)], [found], intro=intro)


def _ceiling(inputs: Inputs) -> Section:
    rooflines, entries = inputs.of(Roofline), inputs.figures.entries
    known = [roofline for roofline, _ in rooflines]
    notes = [
        f"No run was on the machine and with the threads of {place.file}, so it gives no share."
        for roofline, place in rooflines
        if entries and not any(tables.is_of(roofline, entry) for entry in entries)
    ]
    if inputs.model is not None and not inputs.model.flop_per_token:
        notes.append("The runs do not say how many FLOP a token takes, so there is no share.")
    shares = tables.matrix("Share of the ceiling", inputs.figures, lambda f: tables.share_cell(f, known))
    found = (shares, *(tables.ceilings_table(*one) for one in rooflines))
    return _section("ceiling", (), found, notes)


def _retrieval(inputs: Inputs) -> Section:
    searched = inputs.of(Retrieval)
    drawn = [charts.search_quality(number, found) for number, (found, _) in enumerate(searched, 1)]
    notes: list[str] = []
    for found, _ in searched:
        models = ", ".join(f"{bundle} ({model.name})" for bundle, model in found.models.items())
        said = (f"{models}, on {described(found.machine)}.", *retrieval_notes(found))
        notes += [f"{found.dataset.name}: {note}" for note in said]
    return _section("retrieval", drawn, (retrieval_table(*one) for one in searched), notes, INTERVALS)


def _margins(inputs: Inputs) -> Section:
    scored = inputs.of(Margins)
    notes = (f"{found.source}: {note}" for found, _ in scored for note in margins_notes(found))
    return _section("margins", (), (margins_table(*one) for one in scored), notes, f"{MARGINS} {INTERVALS}")


def _facts(inputs: Inputs, name: str) -> Section:
    space, weights = (inputs.model.space_id, inputs.model.weights_sha256) if inputs.model else ("", "")
    intro = f"Everything ran {name}: vector space {space[:16]}, weights SHA-256 {weights[:16]}…"
    found = (tables.machines_table(inputs.figures), tables.contenders_table(inputs.figures))
    return _section("facts", (), found, intro=intro)
