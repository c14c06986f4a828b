"""Inputs to a page: its title, the figures that decide, and the sections in their order."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from m3_bench import formats, stats
from m3_bench.documents import Compared, Comparison, Load, Margins, MethodRun, Retrieval, Roofline, Scenario
from m3_bench.figures import Entry, Figures, Measurement, Place
from m3_bench.machine import described, distinct
from m3_bench.report import charts, tables
from m3_bench.report.inputs import Inputs
from m3_bench.report.page import NO_VALUE, Cell, Chart, Page, Section, SourceRow, Table, Tile
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
from m3_runtime.version import __version__

_SPEED = (
    "Times are from texts to numbers of all heads that were asked for, tokenising included. Latency is over all calls "
    "of all rounds; throughput is the median over rounds. Point at a number to see its raw values; it links to their "
    "file."
)
_ACCURACY = (
    "Each text's vectors against those that the reference gave. Cosines and Jaccard indices are 1 where nothing "
    "differs, and are rounded down. The same top 5: the five heaviest words keep their order, near-ties aside."
)
_MEMORY = (
    "Each scenario ran in a process of its own. Memory is what was resident, mapped weights that were touched "
    "included; of an accelerator it is the device's. Loading is from the start of the process, files cached."
)
_CEILING = (
    "The fastest exact matrix product (2048 × 1024 × 4096) that an engine does in a contender's precision is its "
    "ceiling. The share is tokens/s × FLOP per token ÷ ceiling; attention itself is not counted."
)


@dataclass(frozen=True)
class Parity:
    """A contender's parity, and where it is stored."""

    entry: Entry
    compared: Compared
    place: Place
    reference: str


@dataclass(frozen=True)
class Highlights:
    """What the tiles are of; each is None where there is none."""

    ours: Entry | None  # our fastest variant that has parity, or without variants of ours the fastest other contender
    reference: Entry | None  # the first reference
    query: Scenario | None  # the shortest single text
    load: Scenario | None  # the heaviest call by one caller that most contenders were measured at
    parity: Parity | None  # of `ours`


def build_page(inputs: Inputs, model: str | None = None) -> Page:
    """Compute every figure and draw every chart; `model` is what the page calls the model, None its recorded name."""
    parities = _parities(inputs)
    highlights = _highlights(inputs.figures, parities)
    name = model or (inputs.model.name if inputs.model else "")
    sections = (
        _speed(inputs, highlights),
        _accuracy(inputs, parities, highlights),
        _cost(inputs, highlights),
        _memory(inputs.figures),
        _ceiling(inputs),
        _load(inputs),
        _retrieval(inputs),
        _margins(inputs),
        _facts(inputs, name),
    )
    return Page(
        title=_title(inputs, name),
        subtitle=_subtitle(inputs),
        lead=_lead(highlights),
        tiles=tuple(_tiles(inputs, highlights)),
        remarks=tuple(_remarks(inputs)),
        sections=tuple(section for section in sections if section is not None),
        files=tuple(SourceRow(file.name, file.document.kind.value, file.sha256) for file in inputs.files),
        version=__version__,
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
    return " · ".join([*counts, *machines, *(f"dataset {one.document.dataset.name}" for one in inputs.of(Retrieval))])


def _lead(top: Highlights) -> str:
    if top.ours is None:
        return ""
    threads = top.ours.placed.run.threads
    where = top.ours.machine + (f" with {threads} thread{'s' * (threads > 1)}" if threads else "")
    return f"{top.ours.label} on {where}" + (f", beside {top.reference.label}" if top.reference else "")


def _parities(inputs: Inputs) -> tuple[Parity, ...]:
    found = []
    for comparison in inputs.of(Comparison):
        names = ", ".join(contender.name for contender in comparison.document.reference.contenders)
        for number, one in enumerate(comparison.document.parity):
            run = comparison.document.runs[one.run]
            of_run = (entry for entry in inputs.figures.entries if entry.placed.run == run)
            entry = next((entry for entry in of_run if entry.contender.name == one.contender), None)
            if entry is not None:
                found.append(Parity(entry, one, comparison.place.below("parity", number), names))
    return tuple(found)


def _highlights(figures: Figures, parities: tuple[Parity, ...]) -> Highlights:
    whole = charts.with_most_heads(figures.scenarios)
    alone = [s for s in whole if s.clients == 1]
    loads = [s for s in alone if len(s.lengths) > 1 and len(set(s.lengths)) == 1] or alone
    load = max(loads, key=lambda s: (len(figures.at(s)), s.tokens), default=None)
    with_parity = {parity.entry.label: parity for parity in parities}
    ours = [entry for entry in figures.entries if entry.is_ours]
    ours = ours or [entry for entry in figures.entries if not entry.placed.is_reference]
    speeds = {figure.entry.label: figure.tokens_per_s.median for figure in figures.at(load)}
    known = [entry for entry in ours if entry.label in with_parity] or ours
    fastest = max(known, key=lambda entry: speeds.get(entry.label, 0.0), default=None)
    return Highlights(
        ours=fastest,
        reference=next((entry for entry in figures.entries if entry.placed.is_reference), None),
        query=min((s for s in whole if charts.is_single(s)), key=lambda s: s.tokens, default=None),
        load=load,
        parity=with_parity.get(fastest.label) if fastest else None,
    )


def _tiles(inputs: Inputs, top: Highlights) -> Iterator[Tile]:
    if top.ours is None:
        return
    figures, currency = inputs.figures, inputs.currency
    query, load = figures.get(top.query, top.ours), figures.get(top.load, top.ours)
    reference = figures.get(top.load, top.reference)
    if query is not None:
        theirs = figures.get(top.query, top.reference)
        yield Tile(
            f"{query.scenario.tokens}-token text, p50", tables.p50_cell(query), _against(theirs, tables.p50_cell)
        )
    if load is not None:
        yield Tile(f"tokens/s, {load.scenario.title}", tables.speed_cell(load), _against(reference, tables.speed_cell))
        if load.cost_per_million_tokens is not None:
            theirs = reference if reference and reference.cost_per_million_tokens is not None else None
            notes = _against(theirs, lambda figure: tables.cost_cell(figure, currency))
            yield Tile("per million tokens", tables.cost_cell(load, currency), notes)
        if reference is not None:
            yield from _fleet(load, reference, currency)
        yield from _peers(figures, load)
    if top.parity is not None:
        yield from _kept(top.parity)
    yield from _worst_loss(inputs, top.ours)
    if load is not None and load.peak_bytes:
        weights = load.entry.contender.size_bytes
        notes = (Cell(f"with {formats.size(weights)} of weights"),) if weights else ()
        yield Tile(f"memory, {load.scenario.title}", tables.memory_cell(load), notes)


def _against(theirs: Measurement | None, cell_of: tables.CellOf) -> tuple[Cell, ...]:
    return () if theirs is None else (Cell("against"), cell_of(theirs), Cell(f"for {theirs.entry.label}"))


def _fleet(ours: Measurement, reference: Measurement, currency: str) -> Iterator[Tile]:
    """How many such machines do the work of the reference, and for how much."""
    count = math.ceil(reference.tokens_per_s.median / ours.tokens_per_s.median - 1e-9)
    price, theirs = ours.entry.placed.price_per_hour, reference.entry.placed.price_per_hour
    if count < 2 or price is None or theirs is None:
        return
    costs = f"{formats.money(count * price, currency)} an hour against {formats.price(theirs, currency)}"
    number = Cell(str(count), ours.place, "tokens/s of the reference ÷ ours, rounded up")
    yield Tile("machines for the reference's tokens/s", number, (Cell(costs),))


def _peers(figures: Figures, ours: Measurement) -> Iterator[Tile]:
    """The fastest other contender of the same run that is not ours."""
    others = [f for f in figures.at(ours.scenario) if f.entry.placed == ours.entry.placed and not f.entry.is_ours]
    if others and ours.entry.is_ours:
        best = max(others, key=lambda figure: figure.tokens_per_s.median)
        yield Tile("tokens/s ÷ fastest other", *_split(tables.ratio_cell(ours, best), f"for {best.entry.label}"))


def _kept(parity: Parity) -> Iterator[Tile]:
    texts = (Cell(f"of {len(parity.compared.texts.dense)} texts"),)
    for label, head, key in (
        ("lowest dense cosine", "dense", "cosine_min"),
        ("ColBERT cosine, 5th percentile", "colbert", "cosine_p5"),
        ("mean sparse Jaccard", "sparse", "jaccard_mean"),
    ):
        cell = tables.likeness_cell(parity.compared, parity.place, head, key)
        if cell.place is not None:
            yield Tile(label, cell, texts)


def _worst_loss(inputs: Inputs, ours: Entry) -> Iterator[Tile]:
    """Where the same variant of the same weights loses most in retrieval against FP32."""
    weights, losses = ours.placed.run.model.weights_sha256, []

    def is_it(run: MethodRun, document: Retrieval) -> bool:
        return run.variant == ours.contender.name and document.models[run.bundle].weights_sha256 == weights

    for one in inputs.of(Retrieval) if ours.is_ours else ():
        document = one.document
        for number, run in enumerate(document.methods):
            loss = stats.loss(document.methods, run, main_metric) if is_it(run, document) else None
            if loss is not None:
                place = one.place.below("methods", number, "metrics", stats.MAIN_METRIC)
                losses.append((loss, place, f"{run.method} on {document.dataset.name}"))
    if losses:
        loss, place, where = max(losses, key=lambda found: found[0].mean)
        datasets = len({found.file for _, found, _ in losses})
        words = f"{where}, the highest of {datasets} dataset{'s' * (datasets > 1)}"
        yield Tile(f"loss of {stats.MAIN_METRIC} against FP32", *_split(change(loss, place), words))


def _split(cell: Cell, words: str) -> tuple[Cell, tuple[Cell, ...]]:
    """The value in large letters; its interval and words below."""
    value, interval = re.split(r" (?=[(\[])", cell.text, maxsplit=1)
    return replace(cell, text=value), (Cell(f"{interval} {words}"),)


def _remarks(inputs: Inputs) -> Iterator[str]:
    """Why the figures may not be trusted: notes of the comparisons, and noise, each once with what it is of."""
    figures = inputs.figures
    notes = list(dict.fromkeys(note for one in inputs.of(Comparison) for note in one.document.notes))
    yield from notes
    compared = distinct(entry.placed.run.machine for entry in figures.entries if not entry.placed.is_reference)
    if len(compared) > 1 and not any(note.startswith("Runs are of") for note in notes):
        yield f"Figures are of {len(compared)} machines ({'; '.join(map(described, compared))}): each says which."
    yield from noise(figures)


def noise(figures: Figures) -> Iterator[str]:
    """Each warning once, with the figures that it is of."""
    found: dict[str, list[str]] = {}
    for one in figures.values:
        for warning in one.warnings:
            found.setdefault(warning, []).append(f"{one.entry.label}, {one.scenario.title}")
    for warning, places in found.items():
        more = f" and {len(places) - 2} more" if len(places) > 2 else ""
        yield f"{'; '.join(places[:2])}{more}: {warning}."


def _drawn(*found: Chart | None) -> tuple[Chart, ...]:
    return tuple(chart for chart in found if chart is not None)


def _speed(inputs: Inputs, top: Highlights) -> Section | None:
    figures = inputs.figures
    if not figures.values:
        return None
    drawn = _drawn(
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
    gaps = tuple(f"Not measured: {gap.entry.label} at {gap.scenario}: {gap.reason}" for gap in figures.gaps)
    return Section("speed", "Latency and throughput", _SPEED, drawn, found, gaps)


def _within_rounds(figures: Figures, ours: Entry | None) -> Iterator[Table]:
    """Our contender ÷ each other of its run: they took turns, so noise of the machine cancels."""

    def cell_of(figure: Measurement) -> Cell:
        mine = figures.get(figure.scenario, ours)
        is_other = mine is not None and mine.entry != figure.entry and mine.entry.placed == figure.entry.placed
        return tables.ratio_cell(mine, figure) if mine is not None and is_other else NO_VALUE

    if ours is not None:
        caption = f"Tokens per second of {ours.label} ÷ those of the others, round by round of the same run (interval)"
        found = tables.matrix(caption, figures, cell_of)
        yield from (found,) if found.rows else ()


def _accuracy(inputs: Inputs, parities: tuple[Parity, ...], top: Highlights) -> Section | None:
    if not parities:
        return None
    figures, pairs = inputs.figures, [(one.entry, one.compared) for one in parities]
    drawn = _drawn(charts.speed_and_accuracy(figures, top.load, pairs), *charts.parity_of_texts(figures, pairs))
    found = []
    for reference in dict.fromkeys(one.reference for one in parities):
        these = [one for one in parities if one.reference == reference]
        caption = f"Parity with {reference}, {len(these[0].compared.texts.dense)} texts"
        found.append(tables.parity_table(caption, ((one.entry.label, one.compared, one.place) for one in these)))
    return Section("accuracy", "Accuracy", _ACCURACY, drawn, tuple(found))


def _cost(inputs: Inputs, top: Highlights) -> Section | None:
    figures, currency = inputs.figures, inputs.currency
    entries = [entry for entry in figures.measured if entry.placed.price_per_hour is not None]
    if not entries:
        return None
    prices = sorted({f"{one.machine} {formats.price(one.placed.price_per_hour, currency)}" for one in entries})
    intro = f"The price of an hour ÷ the tokens of an hour. Prices as given: {'; '.join(prices)} an hour."
    found = tables.matrix(f"Cost of a million tokens, {currency}", figures, lambda f: tables.cost_cell(f, ""))
    return Section("cost", "Cost", intro, _drawn(charts.cost(figures, top.load, currency)), (found,))


def _memory(figures: Figures) -> Section | None:
    if not figures.values:
        return None
    found = tables.memory_table(figures)
    return Section("memory", "Memory and start", _MEMORY, _drawn(charts.memory_by_length(figures)), (found,))


def _ceiling(inputs: Inputs) -> Section | None:
    rooflines = inputs.of(Roofline)
    if not rooflines:
        return None
    known = [one.document for one in rooflines]
    shares = tables.matrix("Share of the ceiling", inputs.figures, lambda f: tables.share_cell(f, known))
    notes = [
        f"No run was on the machine and with the threads of {one.name}, so it gives no share."
        for one in rooflines
        if inputs.figures.entries and not any(tables.is_of(one.document, e) for e in inputs.figures.entries)
    ]
    if inputs.model is not None and not inputs.model.flop_per_token:
        notes.append("The runs do not say how many FLOP a token takes, so there is no share.")
    found = (
        *((shares,) if shares.rows else ()),
        *(tables.ceilings_table(one.document, one.place) for one in rooflines),
    )
    return Section("ceiling", "How much of the processor is used", _CEILING, (), found, tuple(notes))


def _load(inputs: Inputs) -> Section | None:
    found = tuple(tables.load_table(one.document, one.place) for one in inputs.of(Load))
    intro = "Latencies are of answers with vectors alone; refusals (429, 503) and errors are counted apart."
    return Section("load", "A server under load", intro, (), found) if found else None


def _retrieval(inputs: Inputs) -> Section | None:
    searched = inputs.of(Retrieval)
    if not searched:
        return None
    drawn = _drawn(*(charts.search_quality(number, one.document) for number, one in enumerate(searched, 1)))
    found = tuple(retrieval_table(one.document, one.place) for one in searched)
    notes: list[str] = []
    for one in searched:
        models = ", ".join(f"{bundle} ({model.name})" for bundle, model in one.document.models.items())
        name = one.document.dataset.name
        notes += [f"{name}: {models}, on {described(one.document.machine)}."]
        notes += [f"{name}: {note}" for note in retrieval_notes(one.document)]
    intro = f"Labelled datasets searched with each variant and method; metrics are means over queries. {INTERVALS}"
    return Section("retrieval", "Retrieval", intro, drawn, found, tuple(notes))


def _margins(inputs: Inputs) -> Section | None:
    scored = inputs.of(Margins)
    if not scored:
        return None
    found = tuple(margins_table(one.document, one.place) for one in scored)
    notes = tuple(f"{one.document.source}: {note}" for one in scored for note in margins_notes(one.document))
    return Section("margins", "Margins on fine-tuning lines", f"{MARGINS} {INTERVALS}", (), found, notes)


def _facts(inputs: Inputs, name: str) -> Section | None:
    model = inputs.model
    if model is None:
        return None
    intro = f"Everything ran {name}: vector space {model.space_id[:16]}, weights SHA-256 {model.weights_sha256[:16]}…"
    found = (tables.machines_table(inputs.figures), tables.contenders_table(inputs.figures))
    return Section("facts", "Machines and contenders", intro, (), found)
