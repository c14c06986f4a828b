"""The charts of a report; each is None where there is too little to draw."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from m3_bench import formats
from m3_bench.documents import Compared, Retrieval, Scenario
from m3_bench.figures import Entry, Figures, Measurement
from m3_bench.report import drawing
from m3_bench.report.drawing import REFERENCE, Axis, Bar, Points
from m3_bench.report.page import Chart
from m3_bench.report.searches import main_metric
from m3_bench.stats import MAIN_METRIC

FLOOR = 1e-8
"""Losses below it are the order in which threads add; documents keep as many digits."""
Spread = tuple[float, float] | None


def is_single(scenario: Scenario) -> bool:
    """Whether it is one text by one caller."""
    return len(scenario.lengths) == 1 and scenario.clients == 1


def with_most_heads(scenarios: Sequence[Scenario]) -> list[Scenario]:
    """Those with the most heads, so that a dense-only call is not held against a whole one."""
    most = max((len(s.heads) for s in scenarios), default=0)
    return [s for s in scenarios if len(s.heads) == most]


def latency_by_length(figures: Figures) -> Chart | None:
    """p50 of one text by one caller."""

    def point(figure: Measurement) -> tuple[float, Spread]:
        p50_s, p95_s = figure.latency.p50_s, figure.latency.p95_s
        return p50_s * 1e3, None if p95_s is None else (p50_s * 1e3, p95_s * 1e3)

    scenarios = [s for s in with_most_heads(figures.scenarios) if is_single(s)]
    caption = "One text, one caller, all heads. Whiskers reach to p95 where there are calls enough. Lower is better."
    series = _series(figures, scenarios, lambda s: s.tokens, point)
    axes = (_ticked("tokens of the text", series), Axis("milliseconds, p50", is_log=True))
    return _lines("latency-by-length", "Latency by length", caption, series, axes)


def memory_by_length(figures: Figures) -> Chart | None:
    """Peak memory of one text by one caller."""
    scenarios = [s for s in with_most_heads(figures.scenarios) if is_single(s)]
    caption = "The most memory of the process while texts of a length were encoded; of a GPU, its own memory."
    series = _series(figures, scenarios, lambda s: s.tokens, lambda f: (f.peak_bytes / 1e6, None))
    series = [one for one in series if any(one.y)]
    axes = (_ticked("tokens of the text", series), Axis("megabytes, peak"))
    return _lines("memory-by-length", "Memory by length", caption, series, axes)


def throughput_by_batch(figures: Figures) -> Chart | None:
    """Tokens per second of calls with several texts of one length, the length that most scenarios have."""
    whole = [s for s in with_most_heads(figures.scenarios) if s.clients == 1 and len(set(s.lengths)) == 1]
    lengths = Counter(s.lengths[0] for s in whole)
    length = max(lengths, key=lambda one: (lengths[one], one), default=0)
    series = _series(figures, [s for s in whole if s.lengths[0] == length], lambda s: len(s.lengths), _speed)
    caption = f"Texts of {length} tokens, one caller. Whiskers: where the true median lies. Higher is better."
    axes = (_ticked("texts in a call", series), Axis("tokens/s", is_log=_is_wide(series)))
    return _lines("throughput-by-batch", "Throughput by batch", caption, series, axes)


def throughput_by_clients(figures: Figures) -> Chart | None:
    """Tokens per second of several callers."""
    many = [s for s in figures.scenarios if s.clients > 1]
    shapes = {(s.lengths, s.heads) for s in many}
    scenarios = [s for s in figures.scenarios if (s.lengths, s.heads) in shapes] if len(shapes) == 1 else many
    series = _series(figures, scenarios, lambda s: s.clients, _speed)
    lengths = f"{len(many[0].lengths)} text(s) of {max(many[0].lengths)} tokens" if many else ""
    caption = f"{lengths} a call, callers share one loaded model. Higher is better."
    axes = (_ticked("callers at a time", series), Axis("tokens/s", is_log=_is_wide(series)))
    return _lines("throughput-by-clients", "Throughput by callers", caption, series, axes)


def throughput(figures: Figures, load: Scenario | None) -> Chart | None:
    """Tokens per second at the load."""
    found = sorted(figures.at(load), key=lambda one: -one.tokens_per_s.median)
    values = [(f.entry, f.tokens_per_s.median, f"{formats.number(f.tokens_per_s.median)} tokens/s") for f in found]
    title = f"Throughput: {load.title}" if load else ""
    return _bars("throughput", title, "Median over rounds. Higher is better.", "tokens/s", values, figures)


def cost(figures: Figures, load: Scenario | None, currency: str) -> Chart | None:
    """What a million tokens cost at the load."""
    priced = [(f.entry, f.cost_per_million_tokens) for f in figures.at(load) if f.cost_per_million_tokens is not None]
    values = [(entry, value, formats.money(value, currency)) for entry, value in priced]
    values.sort(key=lambda one: one[1])
    caption = f"{load.title if load else ''}, machine kept busy. Lower is better."
    return _bars("cost", "Cost of a million tokens", caption, currency, values, figures)


def speed_and_accuracy(
    figures: Figures, load: Scenario | None, parities: Sequence[tuple[Entry, Compared]]
) -> Chart | None:
    """What each variant loses against how fast it is."""
    series = []
    for entry, compared in parities:
        figure = figures.get(load, entry)
        if figure is not None and compared.dense is not None:
            x, y = figure.tokens_per_s.median, max(1 - compared.dense.cosine_mean, FLOOR)
            series.append(Points(entry.label, number_of(figures, entry), (x,), (y,)))
    if len(series) < 2 or load is None:
        return None
    caption = (
        f"Each variant at {load.title}. Right is faster, down is closer to the reference; on the dotted line are those "
        "that no other beats in both."
    )
    axes = (Axis("tokens/s"), Axis("1 − dense cosine, mean", is_log=True, format=drawing.power_of_ten))
    places = sorted(((one.x[0], one.y[0]) for one in series), reverse=True)
    front = [place for n, place in enumerate(places) if all(place[1] < other[1] for other in places[:n])]
    return _chart(drawing.lines, "front", "Speed and accuracy", caption, series, axes, front)


def parity_of_texts(figures: Figures, parities: Sequence[tuple[Entry, Compared]]) -> list[Chart]:
    """One strip chart for each head: what each text lost."""
    heads: tuple[tuple[str, str, str, Callable[[Compared], Sequence[float]]], ...] = (
        ("dense", "Dense vectors", "1 − cosine of each text", lambda one: one.texts.dense),
        ("sparse", "Sparse weights", "1 − weighted Jaccard of each text", lambda one: one.texts.jaccard),
        ("colbert", "ColBERT vectors", "1 − mean cosine of a text's rows", lambda one: one.texts.colbert),
    )
    charts = []
    for head, what, distance, values_of in heads:
        strips = [
            Points(entry.label, number_of(figures, entry), tuple(1 - value for value in values_of(compared)))
            for entry, compared in parities
            if values_of(compared)
        ]
        if strips:
            caption = "A dot is a text; the box holds 90 % of them, the line is their median. Further left is better."
            axis = Axis(distance, is_log=True, format=drawing.power_of_ten)
            name, title = f"parity-{head}", f"{what}: distance to the reference"
            charts.append(_chart(drawing.strips, name, title, caption, strips, axis, FLOOR))
    return charts


def search_quality(number: int, document: Retrieval) -> Chart | None:
    """The main metric of every method, best first; a mark for each variant."""
    runs = [run for run in document.methods if main_metric(run)]
    if not runs:
        return None
    several = len(document.models) > 1
    best: dict[str, float] = {}
    for run in runs:
        best[run.method] = max(best.get(run.method, 0.0), float(np.mean(main_metric(run))))
    methods = sorted(best, key=lambda method: -best[method])
    series: list[Points] = []
    for bundle, variant in dict.fromkeys((run.bundle, run.variant) for run in runs):
        marks = [run for run in runs if (run.bundle, run.variant) == (bundle, variant)]
        x = tuple(float(np.mean(main_metric(run))) for run in marks)
        name = f"{bundle if several else ''} {variant}".strip() or "BM25"
        series.append(Points(name, len(series), x, tuple(float(methods.index(run.method)) for run in marks)))
    caption = "A row is a method, a mark a variant. Further right is better; mind where the axis begins."
    title, axis = f"{MAIN_METRIC} on {document.dataset.name}", Axis(MAIN_METRIC)
    return _chart(drawing.rows, f"retrieval-{number}", title, caption, series, methods, axis)


def number_of(figures: Figures, entry: Entry) -> int:
    """A contender's number, which gives it its colour, the same in every chart; references have one of their own."""
    if entry.placed.is_reference:
        return REFERENCE
    return [one.label for one in figures.entries if not one.placed.is_reference].index(entry.label) % REFERENCE


def _chart(draw: Callable[..., str], name: str, title: str, caption: str, *values: object) -> Chart:
    return Chart(name, title, caption, draw(name, (title, caption), *values))


def _lines(name: str, title: str, caption: str, series: Sequence[Points], axes: tuple[Axis, Axis]) -> Chart | None:
    if not any(len(one.x) > 1 for one in series):
        return None
    return _chart(drawing.lines, name, title, caption, series, axes)


def _bars(
    name: str, title: str, caption: str, unit: str, values: Sequence[tuple[Entry, float, str]], figures: Figures
) -> Chart | None:
    if not values:
        return None
    found = [Bar(entry.label, number_of(figures, entry), value, label) for entry, value, label in values]
    return _chart(drawing.bars, name, title, caption, found, Axis(unit))


def _series(
    figures: Figures,
    scenarios: Sequence[Scenario],
    x_of: Callable[[Scenario], int],
    point: Callable[[Measurement], tuple[float, Spread]],
) -> list[Points]:
    """Each contender's points, from left to right; `point` gives a figure's value and its whisker."""
    names = {scenario.name for scenario in scenarios}
    series = []
    for entry in figures.measured:
        found = sorted((f for f in figures.of(entry) if f.scenario.name in names), key=lambda f: x_of(f.scenario))
        if found:
            x = tuple(float(x_of(f.scenario)) for f in found)
            y, spread = zip(*map(point, found), strict=True)
            series.append(Points(entry.label, number_of(figures, entry), x, y, spread))
    return series


def _speed(figure: Measurement) -> tuple[float, Spread]:
    speed = figure.tokens_per_s
    return speed.median, (speed.low, speed.high)


def _is_wide(series: Sequence[Points]) -> bool:
    """Whether a GPU beside CPUs would press them to the floor of a linear axis."""
    values = [y for one in series for y in one.y]
    return bool(values) and max(values) > 20 * min(values)


def _ticked(title: str, series: Sequence[Points]) -> Axis:
    return Axis(title, is_log=True, ticks=tuple(sorted({x for one in series for x in one.x})))
