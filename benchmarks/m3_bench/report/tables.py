"""The tables of runs: speed, parity, memory, cost, ceilings, load. The report and the terminal show the same ones."""

from collections.abc import Callable, Sequence
from statistics import median

from m3_bench import formats, stats
from m3_bench.documents import Load, Roofline, Round, Scenario, Soak, Stage
from m3_bench.figures import Entry, Figures, Measurement, Parity, Place
from m3_bench.machine import Machine, differences
from m3_bench.report.page import NO_VALUE, Cell, Cells, Table

CellOf = Callable[[Measurement], Cell]
_PARITY = (
    ("dense cosine, mean", "dense", "cosine_mean"),
    ("dense, lowest", "dense", "cosine_min"),
    ("sparse Jaccard, mean", "sparse", "jaccard_mean"),
    ("sparse, lowest", "sparse", "jaccard_min"),
    ("same top 5", "sparse", "top5_same_near_ties_aside"),
    ("ColBERT cosine, mean", "colbert", "cosine_mean"),
    ("ColBERT, 5th percentile", "colbert", "cosine_p5"),
    ("ColBERT, lowest", "colbert", "cosine_min"),
)
_INSTRUCTIONS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve",
)  # fmt: skip


def p50_cell(figure: Measurement) -> Cell:
    """The median of single calls."""
    return _percentile(figure, figure.latency.p50_s, 50)


def speed_cell(figure: Measurement) -> Cell:
    """Tokens per second, the median over rounds."""
    how = f"median of rounds: {_listed(figure.tokens_per_s.values)} tokens/s"
    return _cell(figure, formats.number(figure.tokens_per_s.median), how)


def speed_per_core_cell(figure: Measurement) -> Cell:
    """Tokens per second ÷ threads; no value for an accelerator."""
    scenario = figure.scenario
    threads = (scenario.threads or figure.entry.placed.run.threads) * scenario.processes  # each has a core of its own
    speed = figure.tokens_per_s.median
    if not threads:
        return NO_VALUE
    return _cell(figure, formats.number(speed / threads), f"{formats.number(speed)} tokens/s ÷ {threads} threads")


def cost_cell(figure: Measurement, currency: str) -> Cell:
    """What a million tokens cost."""
    price = figure.entry.placed.price_per_hour
    if price is None or figure.cost_per_million_tokens is None:
        return NO_VALUE
    how = f"{formats.price(price, currency)} an hour ÷ {formats.number(figure.tokens_per_s.median)} tokens/s"
    return _cell(figure, formats.money(figure.cost_per_million_tokens, currency), how)


def memory_cell(figure: Measurement) -> Cell:
    """The most memory in a scenario."""
    if not figure.peak_bytes:
        return NO_VALUE
    where = "on the accelerator" if figure.entry.placed.run.machine.accelerator else "resident"
    return Cell(formats.size(figure.peak_bytes), figure.place, f"peak_bytes, the highest of the rounds, {where}")


def ratio_cell(ours: Measurement, theirs: Measurement) -> Cell:
    """Tokens per second of two contenders of one run, divided round by round, with the interval."""
    found = stats.ratio(ours.tokens_per_s.values, theirs.tokens_per_s.values)
    text = f"{formats.number(found.median)} × ({formats.number(found.low)} … {formats.number(found.high)})"
    return Cell(text, theirs.place, f"median of the ratios within rounds: {_listed(found.values)}")


def likeness_cell(parity: Parity, head: str, key: str) -> Cell:
    """A value of a parity, rounded down; no value where the head is missing."""
    found = getattr(parity.compared, head)
    if found is None:
        return NO_VALUE
    value: float = getattr(found, key)
    text = formats.share(value) if key.startswith("top5") else formats.likeness(value)
    return Cell(text, parity.place.below(head, key), f"{value:.8f}")


def share_cell(figure: Measurement, rooflines: Sequence[Roofline]) -> Cell:
    """Tokens/s × FLOP per token ÷ the ceiling of the contender's precision on its machine, with its threads."""
    run = figure.entry.placed.run
    multiplier = stats.multiplier_of(figure.entry.contender.precision)
    for one in rooflines:
        top = stats.ceiling_flop_per_s(one.ceilings, multiplier)
        if top and run.model.flop_per_token and figure.scenario.clients == 1 and is_of(one, figure.entry):
            share = figure.tokens_per_s.median * run.model.flop_per_token / top
            return _cell(
                figure, f"{share * 100:.0f} %", f"of {top / 1e9:.0f} GFLOP/s, the fastest {multiplier} product"
            )
    return NO_VALUE


def is_of(roofline: Roofline, entry: Entry) -> bool:
    """Whether a roofline is of a contender's machine and threads."""
    run = entry.placed.run
    return roofline.threads == run.threads and not differences(roofline.machine, run.machine)


def _cell(figure: Measurement, text: str, how: str) -> Cell:
    warnings = f"; noisy: {'; '.join(figure.warnings)}" if figure.warnings else ""
    return Cell(text, figure.place, how + warnings, is_noisy=bool(figure.warnings))


def _percentile(figure: Measurement, value_s: float | None, percent: int) -> Cell:
    found = figure.latency
    if value_s is None:
        return Cell(formats.NOTHING, figure.place, found.too_few)
    how = f"p{percent} of {found.calls} calls in {len(figure.rounds)} rounds"
    return _cell(figure, formats.seconds(value_s), how)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(map(formats.number, values[:10])) + ", …" * (len(values) > 10)


def label_of(entry: Entry, figures: Figures) -> str:
    """A contender for a table's head, with its machine where there are several."""
    if entry.placed.is_reference:
        return f"{entry.label}\nreference"
    return f"{entry.label}\n{entry.machine}" if len(figures.machines) > 1 else entry.label


def matrix(
    caption: str, figures: Figures, cell_of: CellOf, rank: Callable[[Measurement], float] | None = None
) -> Table:
    """Scenarios by contenders; the one with the lowest rank of a row stands out."""
    rows = []
    for scenario in figures.scenarios:
        found = {figure.entry.label: figure for figure in figures.at(scenario)}
        best = min(map(rank, found.values())) if rank and len(found) > 1 else None
        row: dict[str, Cell | str] = {"": scenario.title}
        for entry in figures.measured:
            figure = found.get(entry.label)
            cell = NO_VALUE if figure is None else cell_of(figure)
            row[label_of(entry, figures)] = cell.strong() if figure and rank and rank(figure) == best else cell
        rows.append(row)
    return Table.of(caption, rows)


def scenario_table(figures: Figures, scenario: Scenario, currency: str) -> Table:
    """Everything about a scenario."""
    found = figures.at(scenario)
    reference = next((figure for figure in found if figure.entry.placed.is_reference), None)
    texts_per_token = len(scenario.lengths) / scenario.tokens

    def row(f: Measurement) -> Cells:
        return {
            "": label_of(f.entry, figures),
            "p50": p50_cell(f),
            "p95": _percentile(f, f.latency.p95_s, 95),
            "p99": _percentile(f, f.latency.p99_s, 99),
            "tokens/s": speed_cell(f),
            "per core": speed_per_core_cell(f),
            "interval": _interval(f),
            "texts/s": _cell(f, formats.number(f.tokens_per_s.median * texts_per_token), "median of rounds"),
            "× reference": NO_VALUE if reference is None else _times_reference(f, reference),
            "CPU-s per M tokens": _cpu_time(f),
            "cost per M tokens": cost_cell(f, currency),
            "peak memory": memory_cell(f),
            "first call": _first_call(f),
            "tokenising": _part(f, lambda one: one.tokenise_s),
            "engine": _part(f, lambda one: one.engine_s),
        }

    clients = f", {scenario.clients} callers" if scenario.clients > 1 and "caller" not in scenario.title else ""
    caption = f"{scenario.title}{clients}: {' + '.join(scenario.heads)}, {found[0].latency.calls} calls"
    return Table.of(caption, map(row, found), is_detail=True)


def _interval(figure: Measurement) -> Cell:
    found = figure.tokens_per_s
    text = f"{formats.number(found.low)} … {formats.number(found.high)}"
    return Cell(text, figure.place, f"holds the true median in {found.coverage:.0%} of cases")


def _times_reference(figure: Measurement, reference: Measurement) -> Cell:
    times = formats.number(figure.tokens_per_s.median / reference.tokens_per_s.median)
    return Cell(f"{times} ×", figure.place, "median tokens/s of both, divided")


def _cpu_time(figure: Measurement) -> Cell:
    seconds = stats.cpu_s_per_million_tokens(figure.rounds, figure.scenario)
    if seconds is None:
        return NO_VALUE
    return Cell(formats.number(seconds), figure.place, "cpu_s ÷ tokens, median of rounds")


def _first_call(figure: Measurement) -> Cell:
    number = figure.entry.contender.scenarios.index(figure.measured)
    place = figure.entry.place.below("scenarios", number, "first_s")
    return Cell(formats.seconds(figure.measured.first_s), place, "after loading, counted in no round")


def _part(figure: Measurement, seconds_of: Callable[[Round], Sequence[float]]) -> Cell:
    """Which share of a call a part takes; the engine and the tokenizer may overlap."""
    pairs = [pair for one in figure.rounds for pair in zip(seconds_of(one), one.seconds, strict=False)]
    shares = [part_s / call_s for part_s, call_s in pairs if call_s > 0]
    return Cell(f"{median(shares) * 100:.0f} %", figure.place, "share of a call, median") if shares else NO_VALUE


def parity_tables(parities: Sequence[Parity]) -> list[Table]:
    """For each reference, contenders by what their vectors keep of the reference's."""

    def row(parity: Parity) -> Cells:
        cells = {title: likeness_cell(parity, head, key) for title, head, key in _PARITY}
        return {"": parity.entry.label} | cells

    found = []
    for reference in dict.fromkeys(one.reference for one in parities):
        these = [one for one in parities if one.reference == reference]
        caption = f"Parity with {reference}, {len(these[0].compared.texts.dense)} texts"
        found.append(Table.of(caption, map(row, these)))
    return found


def memory_table(figures: Figures) -> Table:
    """Weights, peak memory and loading of each contender."""

    def row(entry: Entry) -> Cells:
        found, weights = figures.of(entry), entry.contender.size_bytes
        highest = max(found, key=lambda one: one.peak_bytes)
        loading = formats.seconds(median(one.measured.load_s for one in found))
        size = Cell(formats.size(weights), entry.place.below("size_bytes"), "bytes ÷ 10⁶")
        return {
            "": entry.label,
            "weights on disk": size if weights else NO_VALUE,
            "highest peak": memory_cell(highest),
            "at": highest.scenario.title if highest.peak_bytes else NO_VALUE,
            "loading": Cell(loading, entry.place.below("scenarios"), f"median of {len(found)} processes"),
        }

    return Table.of("Memory and start", map(row, figures.measured))


def ceilings_table(roofline: Roofline, place: Place) -> Table:
    """The products of each engine and precision."""
    rows: list[Cells] = []
    for number, found in enumerate(roofline.ceilings):
        value = NO_VALUE
        if found.flop_per_s:
            text, how = f"{median(found.flop_per_s) / 1e9:.0f} GFLOP/s", f"median of {len(found.flop_per_s)} products"
            value = Cell(text, place.below("ceilings", number, "flop_per_s"), how)
        rows.append({"": f"{found.engine} {found.precision}", "median": value, "does not count because": found.reason})
    return Table.of(f"Ceilings of {roofline.machine.cpu}, {roofline.threads} threads", rows)


def load_table(load: Load, place: Place) -> Table:
    """A server's stages: what it answered, how fast, and what it refused."""

    def row(number: int, stage: Stage) -> Cells:
        answers = len(stage.latencies_s)
        per_s = [formats.number(n / stage.seconds if n else None) for n in (answers, stage.texts, stage.tokens)]
        found = stats.Latency.of(stage.latencies_s) if answers else None
        times = [
            formats.seconds(value) for value in ((found.p50_s, found.p95_s, found.p99_s) if found else (None,) * 3)
        ]
        words = (*per_s, *times, str(len(stage.refusals_s)), str(sum(stage.errors.values())))
        heads = ("answers/s", "texts/s", "tokens/s", "p50", "p95", "p99", "refusals", "errors")
        asked = f"{stage.clients} clients" if stage.clients else f"{formats.number(stage.rate_per_s)} requests/s"
        cells = (Cell(text, place.below("stages", number)) for text in words)
        return {"": asked} | dict(zip(heads, cells, strict=True))

    texts = f"{load.texts_per_request} texts of {load.words_per_text} words a request"
    rows = (row(number, stage) for number, stage in enumerate(load.stages))
    return Table.of(f"{load.url}, {', '.join(load.apis)}, {texts}", rows)


def soak_table(found: Sequence[tuple[Soak, Place]]) -> Table:
    """What servers held at the end of their soaks, beside what they held when they had settled."""

    def row(soak: Soak, place: Place) -> Cells:
        shown, cycles = stats.growth(soak), place.below("cycles")
        how = f"Theil and Sen's slope after {soak.settle_s / 60:g} minutes; in brackets 90 %"
        slope = f"{shown.mb_per_hour:+.2f} ({shown.low:+.2f} to {shown.high:+.2f})"
        counts = {
            name: str(sum(getattr(one, name) for one in soak.cycles)) for name in ("answered", "refused", "dropped")
        }
        leaks = {"descriptors": f"{shown.descriptors:+g}", "threads": f"{shown.threads:+g}"}
        last = {"resident": formats.size(soak.cycles[-1].resident_bytes), "wrong": str(shown.wrong)}
        texts = {
            "hours": f"{soak.cycles[-1].seconds / 3600:.2f}",
            **counts,
            "errors": str(shown.errors),
            **last,
            **leaks,
        }
        cells: Cells = {key: Cell(text, cycles) for key, text in texts.items()}
        return {"": soak.variant, "MB/h": Cell(slope, cycles, how), **cells}

    return Table.of("Long under load", [row(*one) for one in found])


def machines_table(figures: Figures) -> Table:
    """Where the runs were."""

    def row(machine: Machine) -> Cells:
        runs = [entry.placed for entry in figures.entries if not differences(entry.placed.run.machine, machine)]
        threads = sorted({placed.run.threads for placed in runs})
        place = runs[0].place.below("machine")
        return {
            "": machine.cpu,
            "accelerator": machine.accelerator or NO_VALUE,
            "logical CPUs": Cell(str(machine.logical_cpus), place.below("logical_cpus")),
            "threads": Cell(", ".join(str(n or formats.NOTHING) for n in threads), runs[0].place.below("threads")),
            "memory": Cell(machine.memory, place.below("memory_bytes")) if machine.memory_bytes else NO_VALUE,
            "instructions": ", ".join(flag for flag in _INSTRUCTIONS if flag in machine.flags) or NO_VALUE,
            "system": f"{machine.system}, {machine.architecture}",
            "Python": machine.python,
            "load before": Cell(f"{machine.load_before:.2f}", place.below("load_before")),
        }

    return Table.of("Machines", map(row, figures.machines))


def contenders_table(figures: Figures) -> Table:
    """Who ran, with what."""

    def row(entry: Entry) -> Cells:
        one = entry.contender
        return {
            "": entry.label,
            "is": "reference" if entry.placed.is_reference else "ours" if entry.is_ours else "peer",
            "engine": one.engine,
            "precision": one.precision,
            "heads": ", ".join(one.heads),
            "releases": ", ".join(f"{name} {version}" for name, version in sorted(one.versions.items())) or NO_VALUE,
            "machine": entry.machine,
            "measured in": Cell(entry.placed.source, entry.place),
        }

    return Table.of("Contenders", map(row, figures.entries))
