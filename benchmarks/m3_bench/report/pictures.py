"""The charts of a report; each is None where there is too little to draw."""

from collections import Counter
from collections.abc import Callable, Sequence

from m3_bench.compare import words
from m3_bench.compare.figures import Board, Figure
from m3_bench.documents import Scenario
from m3_bench.report import plots, svg
from m3_bench.report.choice import PlacedParity, is_single, number_of
from m3_bench.report.page import Picture
from m3_bench.report.plots import Axis, Bar, Point, Series, Strip

FLOOR = 1e-8
"""Losses below it are the order in which threads add; documents keep as many digits."""
_MB = 1e6
ValueOf = Callable[[Figure], float]


def latency_by_length(board: Board) -> Picture | None:
    """p50 of one text by one caller."""
    scenarios = _most_heads([s for s in board.scenarios if is_single(s)])
    series = _series(board, scenarios, lambda s: s.tokens, _latency_point)
    if not _has_line(series):
        return None
    axes = (_length_axis(scenarios), Axis("milliseconds, p50", _plain, is_log=True))
    caption = "One text, one caller, all heads. Whiskers reach to p95 where there are calls enough. Lower is better."
    return _lines("latency-by-length", "Latency by length", caption, series, axes)


def memory_by_length(board: Board) -> Picture | None:
    """Peak memory of one text by one caller."""
    scenarios = _most_heads([s for s in board.scenarios if is_single(s)])
    told = _series(board, scenarios, lambda s: s.tokens, _memory_point)
    series = [one for one in told if any(point.y for point in one.points)]
    if not _has_line(series):
        return None
    axes = (_length_axis(scenarios), Axis("megabytes, peak", _plain))
    caption = "The most memory of the process while texts of a length were encoded; of a GPU, its own memory."
    return _lines("memory-by-length", "Memory by length", caption, series, axes)


def throughput_by_batch(board: Board) -> Picture | None:
    """Tokens per second of calls with several texts of one length, the length that most scenarios have."""
    whole = _most_heads([s for s in board.scenarios if s.clients == 1 and len(set(s.lengths)) == 1])
    lengths = Counter(s.lengths[0] for s in whole)
    length = max(lengths, key=lambda one: (lengths[one], one), default=0)
    scenarios = [s for s in whole if s.lengths[0] == length]
    series = _series(board, scenarios, lambda s: len(s.lengths), _speed_point)
    if not _has_line(series):
        return None
    axes = (
        _ticked("texts in a call", sorted({len(s.lengths) for s in scenarios})),
        Axis("tokens/s", _plain, is_log=_is_wide(series)),
    )
    caption = f"Texts of {length} tokens, one caller. Whiskers: where the true median lies. Higher is better."
    return _lines("throughput-by-batch", "Throughput by batch", caption, series, axes)


def throughput_by_clients(board: Board) -> Picture | None:
    """Tokens per second of several callers."""
    many = [s for s in board.scenarios if s.clients > 1]
    shapes = {(s.lengths, s.heads) for s in many}
    scenarios = [s for s in board.scenarios if (s.lengths, s.heads) in shapes] if len(shapes) == 1 else many
    series = _series(board, scenarios, lambda s: s.clients, _speed_point)
    if not _has_line(series):
        return None
    axes = (
        _ticked("callers at a time", sorted({s.clients for s in scenarios})),
        Axis("tokens/s", _plain, is_log=_is_wide(series)),
    )
    caption = f"{_texts(scenarios[0])} a call, callers share one loaded model. Higher is better."
    return _lines("throughput-by-clients", "Throughput by callers", caption, series, axes)


def parity_distributions(found: Sequence[PlacedParity]) -> tuple[Picture, ...]:
    """One strip chart for each head: what each text lost."""
    heads = (
        ("dense", "Dense vectors", "1 − cosine of each text", [one.compared.texts.dense for one in found]),
        (
            "sparse",
            "Sparse weights",
            "1 − weighted Jaccard of each text",
            [one.compared.texts.jaccard for one in found],
        ),
        (
            "colbert",
            "ColBERT vectors",
            "1 − mean cosine of a text's rows",
            [one.compared.texts.colbert for one in found],
        ),
    )
    pictures = []
    for head, title, axis, values in heads:
        strips = [
            Strip(one.label, one.number, tuple(1 - value for value in texts))
            for one, texts in zip(found, values, strict=True)
            if texts
        ]
        if strips:
            caption = "A dot is a text; the box holds 90 % of them, the line is their median. Further left is better."
            drawn = plots.strips(
                f"parity-{head}",
                f"{title}: distance to the reference",
                f"{axis}. {'; '.join(_strip_words(strip) for strip in strips)}.",
                strips,
                Axis(axis, svg.power_of_ten, is_log=True),
                FLOOR,
            )
            pictures.append(Picture(f"parity-{head}", f"{title}: distance to the reference", caption, drawn))
    return tuple(pictures)


def speed_and_accuracy(board: Board, load: Scenario | None, found: Sequence[PlacedParity]) -> Picture | None:
    """What each variant loses against how fast it is."""
    if load is None:
        return None
    figures = {one.who.label: one for one in board.at(load.name)}
    series = []
    for one in found:
        dense, figure = one.compared.dense, figures.get(one.label)
        if dense is not None and figure is not None:
            lost = max(1 - dense.cosine_mean, FLOOR)
            speed = words.number(figure.tokens_per_s.median)
            told = f"{one.label}: {speed} tokens/s, dense cosine {words.likeness(dense.cosine_mean)}"
            series.append(Series(one.label, one.number, (Point(figure.tokens_per_s.median, lost, told),)))
    if len(series) < 2:
        return None
    title, caption = (
        "Speed and accuracy",
        (
            f"Each variant at {load.title}. Right is faster, down is closer to the reference; on the dotted line are "
            "those that no other beats in both."
        ),
    )
    axes = (Axis("tokens/s", _plain), Axis("1 − dense cosine, mean", svg.power_of_ten, is_log=True))
    described = f"{caption} {'; '.join(one.points[0].told for one in series)}."
    return Picture("front", title, caption, plots.points("front", title, described, series, axes))


def bars_of(
    name: str, title: str, caption: str, axis: str, found: Sequence[tuple[Figure, float, str]], board: Board
) -> Picture | None:
    """Bars of a value of some figures, each with the words at its end."""
    if not found:
        return None
    drawn = [
        Bar(f.who.label, number_of(board, f.who.label), value, f"{f.who.label} on {f.who.machine}: {label}", label)
        for f, value, label in found
    ]
    told = f"{caption} {'; '.join(bar.told for bar in drawn)}."
    return Picture(name, title, caption, plots.bars(name, title, told, drawn, Axis(axis, _plain)))


def _lines(name: str, title: str, caption: str, series: Sequence[Series], axes: tuple[Axis, Axis]) -> Picture:
    told = "; ".join(f"{one.name}: {', '.join(point.told for point in one.points)}" for one in series)
    return Picture(name, title, caption, plots.lines(name, title, f"{caption} {told}.", series, axes))


def _series(
    board: Board,
    scenarios: Sequence[Scenario],
    x_of: Callable[[Scenario], int],
    point: Callable[[float, Figure], Point],
) -> list[Series]:
    names = {scenario.name for scenario in scenarios}
    found = []
    for who in board.whos:
        figures = [one for one in board.of(who.label) if one.scenario.name in names]
        points = sorted((point(float(x_of(one.scenario)), one) for one in figures), key=lambda p: p.x)
        if points:
            found.append(Series(who.label, number_of(board, who.label), tuple(points), who.placed.is_reference))
    return found


def _latency_point(x: float, figure: Figure) -> Point:
    p50_ms = figure.latency.p50_s * 1e3
    p95_ms = None if figure.latency.p95_s is None else figure.latency.p95_s * 1e3
    told = f"{x:.0f} tokens {words.seconds(figure.latency.p50_s)}"
    return Point(x, p50_ms, told, None if p95_ms is None else p50_ms, p95_ms)


def _memory_point(x: float, figure: Figure) -> Point:
    return Point(x, figure.peak_bytes / _MB, f"{x:.0f} tokens {words.size(figure.peak_bytes)}")


def _speed_point(x: float, figure: Figure) -> Point:
    speed = figure.tokens_per_s
    return Point(x, speed.median, f"{x:.0f}: {words.number(speed.median)} tokens/s", speed.low, speed.high)


def _most_heads(scenarios: Sequence[Scenario]) -> list[Scenario]:
    most = max((len(s.heads) for s in scenarios), default=0)
    return [s for s in scenarios if len(s.heads) == most]


def _has_line(series: Sequence[Series]) -> bool:
    return any(len({point.x for point in one.points}) > 1 for one in series)


def _is_wide(series: Sequence[Series]) -> bool:
    """Whether a GPU beside CPUs would press them to the floor of a linear axis."""
    values = [point.y for one in series for point in one.points]
    return max(values) > 20 * min(values)


def _length_axis(scenarios: Sequence[Scenario]) -> Axis:
    return _ticked("tokens of the text", sorted({s.tokens for s in scenarios}))


def _ticked(title: str, values: Sequence[int]) -> Axis:
    return Axis(title, _plain, is_log=True, ticks=tuple(map(float, values)))


def _texts(scenario: Scenario) -> str:
    texts = len(scenario.lengths)
    return f"{texts} text{'s' * (texts > 1)} of {scenario.tokens // texts} tokens"


def _plain(value: float) -> str:
    return f"{value:,.6g}".replace(",", " ")


def _strip_words(strip: Strip) -> str:
    ordered = sorted(strip.values)
    return f"{strip.name}: median {ordered[len(ordered) // 2]:.2g}, highest {ordered[-1]:.2g}"
