"""The tables of runs: speed, parity, ceilings, load. The report and the terminal show the same ones."""

from collections.abc import Sequence
from statistics import median

from m3_bench import formats, stats
from m3_bench.documents import Load, Roofline, Scenario, Soak, Stage
from m3_bench.figures import Entry, Figures, Measurement, Parity
from m3_bench.formats import NOTHING
from m3_bench.machine import differences
from m3_bench.report.page import Cell, Cells, Table

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


def overview(figures: Figures) -> Table:
    """Scenarios by contenders: the median call, and tokens/s, the highest of which stand out."""
    rows = []
    for scenario in figures.scenarios:
        found = {figure.entry.label: figure for figure in figures.at(scenario)}
        best = max(figure.tokens_per_s.median for figure in found.values())
        row: dict[str, Cell | str] = {"": scenario.title}
        for entry in figures.measured:
            figure = found.get(entry.label)
            row[_head(entry)] = Cell(NOTHING) if figure is None else _speed_cell(figure, best if len(found) > 1 else 0)
        rows.append(row)
    return Table.of("p50 of a call, and tokens per second", rows)


def _speed_cell(figure: Measurement, best: float) -> Cell:
    speed = figure.tokens_per_s.median
    text = f"{formats.seconds(figure.latency.p50_s)}\n{formats.number(speed)} tokens/s"
    return Cell(text, is_noisy=bool(figure.warning), is_strong=speed == best)


def _head(entry: Entry) -> str:
    return f"{entry.label}\nreference" if entry.placed.is_reference else entry.label


def scenario_table(
    figures: Figures, scenario: Scenario, currency: str, ours: Entry | None, rooflines: Sequence[Roofline]
) -> Table:
    """What `overview` does not say of a scenario. Speeds of contenders of one run are divided round by round."""
    found = figures.at(scenario)
    mine = figures.get(scenario, ours)
    reference = next((figure for figure in found if figure.entry.placed.is_reference), None)

    def row(f: Measurement) -> Cells:
        threads = (scenario.threads or f.entry.placed.run.threads) * scenario.processes
        speed = f.tokens_per_s
        return {
            "": _head(f.entry),
            "p95": formats.seconds(f.latency.p95_s),
            "p99": formats.seconds(f.latency.p99_s),
            "tokens/s, rounds": f"{formats.number(speed.low)} … {formats.number(speed.high)}",
            "ours ÷ it (rounds)": _ratio(mine, f),
            "× reference": f"{formats.number(speed.median / reference.tokens_per_s.median)} ×"
            if reference
            else NOTHING,
            "per core": formats.number(speed.median / threads) if threads else NOTHING,
            "of the ceiling": _share(f, rooflines),
            "CPU-s per M tokens": formats.number(stats.cpu_s_per_million_tokens(f.rounds, scenario)),
            "cost per M tokens": cost(f, currency),
            "peak memory": peak_memory(f),
            "loading": formats.seconds(f.measured.load_s),
            "first call": formats.seconds(f.measured.first_s),
        }

    clients = f", {scenario.clients} callers" if scenario.clients > 1 and "caller" not in scenario.title else ""
    caption = f"{scenario.title}{clients}: {' + '.join(scenario.heads)}, {found[0].latency.calls} calls"
    return Table.of(caption, map(row, found), is_detail=True)


def cost(figure: Measurement, currency: str) -> str:
    """Of a million tokens."""
    found = figure.cost_per_million_tokens
    return NOTHING if found is None else formats.money(found, currency)


def peak_memory(figure: Measurement) -> str:
    """The most resident memory."""
    return formats.size(figure.peak_bytes) if figure.peak_bytes else NOTHING


def _ratio(mine: Measurement | None, other: Measurement) -> str:
    """Tokens per second of two contenders of one run: they took turns, so noise of the machine cancels."""
    if mine is None or mine.entry == other.entry or mine.entry.placed != other.entry.placed:
        return NOTHING
    return ratio_text(mine, other)


def ratio_text(ours: Measurement, theirs: Measurement) -> str:
    """Tokens per second divided round by round: the median, the lowest and the highest round."""
    found = stats.ratio(ours.tokens_per_s.values, theirs.tokens_per_s.values)
    return f"{formats.number(found.median)} × ({formats.number(found.low)} … {formats.number(found.high)})"


def _share(figure: Measurement, rooflines: Sequence[Roofline]) -> str:
    """Tokens/s × FLOP per token ÷ the ceiling of the contender's precision on its machine, with its threads."""
    run = figure.entry.placed.run
    for one in rooflines:
        top = stats.ceiling_flop_per_s(one.ceilings, stats.multiplier_of(figure.entry.contender.precision))
        if top and run.model.flop_per_token and figure.scenario.clients == 1 and is_of(one, figure.entry):
            return f"{figure.tokens_per_s.median * run.model.flop_per_token / top * 100:.0f} %"
    return NOTHING


def is_of(roofline: Roofline, entry: Entry) -> bool:
    """Whether a roofline is of a contender's machine and threads."""
    run = entry.placed.run
    return roofline.threads == run.threads and not differences(roofline.machine, run.machine)


def parity_tables(parities: Sequence[Parity]) -> list[Table]:
    """For each reference, contenders by what their vectors keep of the reference's."""
    found = []
    for reference in dict.fromkeys(one.reference for one in parities):
        these = [one for one in parities if one.reference == reference]
        caption = f"Parity with {reference}, {len(these[0].compared.texts.dense)} texts"
        rows = ({"": one.entry.label} | {title: parity_text(one, *at) for title, *at in _PARITY} for one in these)
        found.append(Table.of(caption, rows))
    return found


def parity_text(parity: Parity, head: str, key: str) -> str:
    """A value of a parity, rounded down; no value where the head is missing."""
    found = getattr(parity.compared, head)
    if found is None:
        return NOTHING
    value: float = getattr(found, key)
    return formats.share(value) if key.startswith("top5") else formats.likeness(value)


def ceilings_table(roofline: Roofline) -> Table:
    """The products of each engine and precision."""
    rows = (
        {
            "": f"{found.engine} {found.precision}",
            "median": f"{median(found.flop_per_s) / 1e9:.0f} GFLOP/s" if found.flop_per_s else NOTHING,
            "does not count because": found.reason or NOTHING,
        }
        for found in roofline.ceilings
    )
    return Table.of(f"Ceilings of {roofline.machine.cpu}, {roofline.threads} threads", rows)


def load_table(load: Load) -> Table:
    """A server's stages: what it answered, how fast, and what it refused; neither is averaged into latencies."""

    def row(stage: Stage) -> Cells:
        answers, seconds, resident = len(stage.latencies_s), stage.seconds, stage.resident_bytes
        found = stats.Latency.of(stage.latencies_s) if answers else None
        times = (found.p50_s, found.p95_s, found.p99_s) if found else (None,) * 3
        counts = {"answers/s": answers, "texts/s": stage.texts, "tokens/s": stage.tokens}
        return {
            "": f"{stage.clients} clients" if stage.clients else f"{formats.number(stage.rate_per_s)} requests/s",
            "answers": str(answers),
            **{head: formats.number(count / seconds if count else None) for head, count in counts.items()},
            **{head: formats.seconds(time_s) for head, time_s in zip(("p50", "p95", "p99"), times, strict=True)},
            "refusals": str(len(stage.refusals_s)),
            "Retry-After": ", ".join(filter(None, stage.retry_after)) or NOTHING,
            "errors": "; ".join(f"{count} × {error}" for error, count in stage.errors.items()) or "0",
            "99 % sent within": formats.seconds(stage.late_s) if stage.rate_per_s else NOTHING,
            "client's cores": f"{stage.client_cores:.2f}",
            "memory, most": formats.size(max(resident)) if resident else NOTHING,
            "lowest cosine": NOTHING if stage.cosine_min is None else f"{stage.cosine_min:.8f}",
        }

    texts = f"{load.texts_per_request} texts of {load.words_per_text} words a request"
    return Table.of(f"{load.url}, {', '.join(load.apis)}, {texts}", map(row, load.stages))


def soak_table(found: Sequence[Soak]) -> Table:
    """What servers held at the end of their soaks; in brackets 90 % of the slope, Theil and Sen's.

    A soak that was stopped early, or goes on, has no slope yet.
    """

    def row(soak: Soak) -> Cells:
        counted, last = stats.cycles_after_warmup(soak), soak.cycles[-1]
        shown = stats.growth(soak) if len(counted) >= stats.FEWEST_CYCLES else None
        counts = {
            name: str(sum(getattr(one, name) for one in soak.cycles)) for name in ("answered", "refused", "dropped")
        }
        return {
            "": soak.variant,
            "MB/h": f"{shown.mb_per_hour:+.2f} ({shown.low:+.2f} to {shown.high:+.2f})" if shown else NOTHING,
            "hours": f"{last.seconds / 3600:.2f}",
            **counts,
            "errors": str(sum(sum(one.errors.values()) for one in soak.cycles)),
            "resident": formats.size(last.resident_bytes),
            "wrong": str(sum(one.wrong for one in soak.cycles)),
            "descriptors": f"{shown.descriptors:+g}" if shown else NOTHING,
            "threads": f"{shown.threads:+g}" if shown else NOTHING,
        }

    return Table.of("Long under load", map(row, found))


def contenders_table(figures: Figures) -> Table:
    """The contenders and their releases."""

    def row(entry: Entry) -> Cells:
        one = entry.contender
        return {
            "": entry.label,
            "is": "reference" if entry.placed.is_reference else "ours" if entry.is_ours else "peer",
            "engine": one.engine,
            "precision": one.precision,
            "heads": ", ".join(one.heads),
            "weights on disk": formats.size(one.size_bytes) if one.size_bytes else NOTHING,
            "releases": ", ".join(f"{name} {version}" for name, version in sorted(one.versions.items())) or NOTHING,
            "measured in": entry.placed.source,
        }

    return Table.of("Contenders", map(row, figures.entries))
