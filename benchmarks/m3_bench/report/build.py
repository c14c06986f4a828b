"""Inputs to a page: its title, the figures that decide, and the sections in their order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from m3_bench import formats
from m3_bench.documents import Comparison, Load, Margins, Retrieval, Roofline, Scenario, Soak
from m3_bench.figures import Entry, Figures, Measurement, Parity, parities_of
from m3_bench.formats import NOTHING
from m3_bench.machine import Machine, described
from m3_bench.report import charts, tables
from m3_bench.report.inputs import Inputs
from m3_bench.report.page import Chart, Page, Section, Table, Tile
from m3_bench.report.searches import (
    MARGINS,
    intervals_in_words,
    margins_notes,
    margins_table,
    retrieval_notes,
    retrieval_table,
)

_INSTRUCTIONS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve",
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
    figures = inputs.figures
    parities = [parity for one in inputs.of(Comparison) for parity in parities_of(one, figures.entries)]
    top = _highlights(figures, parities)
    name = model or (inputs.model.name if inputs.model else "")
    soaks = [one for one in inputs.of(Soak) if one.cycles]
    sections = (
        _speed(inputs, top),
        _section("accuracy", charts.parity_of_texts(parities), tables.parity_tables(parities)),
        _ceiling(inputs),
        _section("load", (), map(tables.load_table, inputs.of(Load))),
        _section("soak", [charts.memory_over_time(soaks)], [tables.soak_table(soaks)]),
        _retrieval(inputs.of(Retrieval)),
        _margins(inputs.of(Margins)),
        _facts(inputs, name),
    )
    return Page(
        title=_title(inputs, name),
        subtitle=_subtitle(inputs),
        lead=_lead(top),
        tiles=tuple(_tiles(inputs, top, parities)),
        remarks=(*dict.fromkeys(note for one in inputs.of(Comparison) for note in one.notes), *figures.warnings),
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
    machines = dict.fromkeys(entry.placed.run.machine.short_name for entry in figures.entries)
    return " · ".join([*counts, *machines, *(f"dataset {found.dataset.name}" for found in inputs.of(Retrieval))])


def _lead(top: Highlights) -> str:
    if top.ours is None:
        return ""
    run = top.ours.placed.run
    where = run.machine.short_name + (f" with {run.threads} thread{'s' * (run.threads > 1)}" if run.threads else "")
    return f"{top.ours.label} on {where}" + (f", beside {top.reference.label}" if top.reference else "")


def _highlights(figures: Figures, parities: Sequence[Parity]) -> Highlights:
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


def _tiles(inputs: Inputs, top: Highlights, parities: Sequence[Parity]) -> Iterator[Tile]:
    figures = inputs.figures
    query, load = (f"{top.query.tokens}-token text" if top.query else ""), (top.load.title if top.load else "")
    shown: tuple[tuple[str, Scenario | None, Callable[[Measurement], str]], ...] = (
        (f"{query}, p50", top.query, lambda f: formats.seconds(f.latency.p50_s)),
        (f"tokens/s, {load}", top.load, lambda f: formats.number(f.tokens_per_s.median)),
        ("per million tokens", top.load, lambda f: tables.cost(f, inputs.currency)),
        (f"memory, {load}", top.load, tables.peak_memory),
    )
    for label, scenario, text_of in shown:
        ours, theirs = (_shown(figures.get(scenario, entry), text_of) for entry in (top.ours, top.reference))
        if ours:
            against = f"against {theirs} for {top.reference.label}" if theirs and top.reference else ""
            yield Tile(label, ours, against)
    yield from _peers(figures, figures.get(top.load, top.ours))
    for parity in [one for one in parities if one.entry == top.ours][:1]:
        for label, head, key in (
            ("lowest dense cosine", "dense", "cosine_min"),
            ("ColBERT cosine, 5th percentile", "colbert", "cosine_p5"),
            ("mean sparse Jaccard", "sparse", "jaccard_mean"),
        ):
            if (text := tables.parity_text(parity, head, key)) != NOTHING:
                yield Tile(label, text, f"of {len(parity.compared.texts.dense)} texts")


def _shown(figure: Measurement | None, text_of: Callable[[Measurement], str]) -> str:
    """A figure in words, with a "?" if it is a noisy time; empty if there is none."""
    text = NOTHING if figure is None else text_of(figure)
    if figure is None or text == NOTHING:
        return ""
    return f"{text} ?" if figure.warning and text_of is not tables.peak_memory else text


def _peers(figures: Figures, ours: Measurement | None) -> Iterator[Tile]:
    """The fastest other contender of the same run that is not ours."""
    if ours is None or not ours.entry.is_ours:
        return
    others = [f for f in figures.at(ours.scenario) if f.entry.placed == ours.entry.placed and not f.entry.is_ours]
    if others:
        best = max(others, key=lambda figure: figure.tokens_per_s.median)
        value, _, rounds = tables.ratio_text(ours, best).partition(" (")
        yield Tile("tokens/s ÷ fastest other", value, f"({rounds} for {best.entry.label}")


def _section(anchor: str, drawn: Iterable[Chart | None], found: Iterable[Table], notes: Iterable[str] = ()) -> Section:
    """A part of the page, with those charts and tables that have something to show."""
    shown = tuple(table for table in found if table.rows)
    return Section(anchor, tuple(chart for chart in drawn if chart is not None), shown, tuple(notes))


def _speed(inputs: Inputs, top: Highlights) -> Section:
    figures, rooflines = inputs.figures, inputs.of(Roofline)
    drawn = (
        charts.latency_by_length(figures),
        charts.throughput_by_batch(figures),
        charts.throughput_by_clients(figures),
        charts.throughput(figures, top.load),
    )
    found = (tables.scenario_table(figures, one, inputs.currency, top.ours, rooflines) for one in figures.scenarios)
    prices = {
        f"{one.placed.run.machine.short_name}: {formats.money(one.placed.price_per_hour, inputs.currency)} an hour"
        for one in figures.measured
        if one.placed.price_per_hour is not None
    }
    return _section("speed", drawn, (tables.overview(figures), *found), (*sorted(prices), *figures.gaps))


def _ceiling(inputs: Inputs) -> Section:
    rooflines, entries = inputs.of(Roofline), inputs.figures.entries
    notes = [
        f"No run was on {roofline.machine.cpu} with {roofline.threads} threads, so there is no share of its ceilings."
        for roofline in rooflines
        if entries and not any(tables.is_of(roofline, entry) for entry in entries)
    ]
    if inputs.model is not None and not inputs.model.flop_per_token:
        notes.append("The runs do not say how many FLOP a token takes, so there is no share.")
    return _section("ceiling", (), map(tables.ceilings_table, rooflines), notes)


def _retrieval(searched: Sequence[Retrieval]) -> Section:
    drawn = [charts.search_quality(number, found) for number, found in enumerate(searched, 1)]
    shown = [retrieval_table(found) for found in searched]
    notes = _unless_empty(intervals_in_words(shown))
    for found in searched:
        models = ", ".join(f"{bundle} ({model.name})" for bundle, model in found.models.items())
        said = (f"{models}, on {described(found.machine)}.", *retrieval_notes(found))
        notes += [f"{found.dataset.name}: {note}" for note in said]
    return _section("retrieval", drawn, shown, notes)


def _margins(scored: Sequence[Margins]) -> Section:
    shown = [margins_table(found) for found in scored]
    notes = [MARGINS, *_unless_empty(intervals_in_words(shown))]
    notes += [f"{found.source}: {note}" for found in scored for note in margins_notes(found)]
    return _section("margins", (), shown, notes)


def _unless_empty(note: str) -> list[str]:
    return [note] if note else []


def _facts(inputs: Inputs, name: str) -> Section:
    model, entries = inputs.model, inputs.figures.entries
    weights = f": vector space {model.space_id[:16]}, weights SHA-256 {model.weights_sha256[:16]}…" if model else ""
    machines = dict.fromkeys(_on(entry.placed.run.machine, entry.placed.run.threads) for entry in entries)
    return _section(
        "facts", (), [tables.contenders_table(inputs.figures)], (f"Everything ran {name}{weights}", *machines)
    )


def _on(machine: Machine, threads: int) -> str:
    """A machine, what it was running, and how busy it was."""
    flags = ", ".join(flag for flag in _INSTRUCTIONS if flag in machine.flags)
    ran = f"{threads} threads" if threads else ""
    parts = (described(machine), ran, flags, machine.system, machine.architecture, f"Python {machine.python}")
    return "; ".join(filter(None, (*parts, f"load before {machine.load_before:.2f}")))
