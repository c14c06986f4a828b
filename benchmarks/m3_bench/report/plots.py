"""Charts: lines, bars, strips of dots, and points with names. Values in, SVG out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from m3_bench import stats
from m3_bench.report import svg
from m3_bench.report.svg import Scale

WIDTH, RIGHT, TOP, BOTTOM = 440.0, 14.0, 14.0, 44.0
PLOT_HEIGHT = 220.0
LEGEND_ROW, LETTER, ROW = 18.0, 6.6, 30.0
NAME_LETTERS = 30
BAR_NAME_LETTERS = 60
Told = Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """A value with its spread; `told` is shown when it is pointed at."""

    x: float
    y: float
    told: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points of one name; `number` chooses colour and shape, a reference is dashed."""

    name: str
    number: int
    points: tuple[Point, ...]
    is_reference: bool = False


@dataclass(frozen=True)
class Axis:
    """What an axis shows, with its unit, and how its ticks are written."""

    title: str
    told: Told
    is_log: bool = False
    ticks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Bar:
    """A bar with its spread."""

    name: str
    number: int
    value: float
    told: str
    label: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Strip:
    """Values of one name, a dot each."""

    name: str
    number: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """Values of one name, a mark for each series; `marks` are (series' number, value, words)."""

    name: str
    marks: tuple[tuple[int, float, str], ...]


def lines(name: str, title: str, description: str, series: Sequence[Series], axes: tuple[Axis, Axis]) -> str:
    """Lines over a number, with whiskers where points have a spread."""
    x, y = axes
    legend = _legend([(one.name, one.number) for one in series])
    top = TOP + len(legend) * LEGEND_ROW
    bottom = top + PLOT_HEIGHT
    points = [point for one in series for point in one.points]
    tops = [value for p in points for value in (p.y, p.high) if value is not None]
    lows = [value for p in points for value in (p.y, p.low) if value is not None]
    ys = _scale([*tops, *lows], y, bottom, top)
    xs = _scale([p.x for p in points], x, _left(ys, y) + 10, WIDTH - RIGHT - 10)
    parts = [*_drawn_legend(legend), *_grid(xs, ys, axes, (top, bottom))]
    for one in series:
        parts += _series(one, xs, ys)
    return svg.drawing(name, title, description, (WIDTH, bottom + BOTTOM), parts)


def _scale(values: Sequence[float], axis: Axis, start: float, end: float) -> Scale:
    if axis.ticks:
        low, high = min(axis.ticks), max(axis.ticks)
        return Scale(low, high if high > low else low * 2, start, end, axis.is_log)
    return svg.logarithmic(values, start, end) if axis.is_log else svg.linear(values, start, end)


def _left(ys: Scale, axis: Axis) -> float:
    """Where the plot begins: to its left are the axis' title and its widest tick."""
    return 30 + LETTER * max(len(axis.told(value)) for value in axis.ticks or svg.ticks(ys))


def _grid(xs: Scale, ys: Scale, axes: tuple[Axis, Axis], ends: tuple[float, float]) -> Iterator[str]:
    top, bottom = ends
    left = xs.start - 10
    for value in axes[1].ticks or svg.ticks(ys):
        yield svg.line(left, ys.at(value), WIDTH - RIGHT, ys.at(value), "grid")
        yield svg.text(left - 7, ys.at(value) + 4, axes[1].told(value), anchor="end")
    yield from _x_axis(xs, axes[0], top, bottom)
    yield f"<g transform='translate(12 {(top + bottom) / 2:.1f}) rotate(-90)'>"
    yield svg.text(0, 0, axes[1].title, "axis-title", "middle") + "</g>"


def _x_axis(xs: Scale, axis: Axis, top: float, bottom: float) -> Iterator[str]:
    last = -1e9
    for value in axis.ticks or svg.ticks(xs):
        at, words = xs.at(value), axis.told(value)
        yield svg.line(at, top, at, bottom, "grid")
        half = len(words) * LETTER / 2
        if at - half > last:  # a word on another word is no word
            yield svg.text(at, bottom + 16, words, anchor="middle")
            last = at + half + 2
    yield svg.text((xs.start + xs.end) / 2, bottom + 36, axis.title, "axis-title", "middle")


def _series(one: Series, xs: Scale, ys: Scale) -> Iterator[str]:
    places = [(xs.at(point.x), ys.at(point.y)) for point in one.points]
    dashed = " dashed" if one.is_reference else ""
    yield svg.path(places, f"line {svg.colour(one.number)}{dashed}")
    for point, (x, y) in zip(one.points, places, strict=True):
        if point.low is not None and point.high is not None:
            yield svg.line(x, ys.at(point.low), x, ys.at(point.high), f"whisker {svg.colour(one.number)}")
        yield svg.marker(x, y, one.number, point.told)


def bars(name: str, title: str, description: str, found: Sequence[Bar], axis: Axis) -> str:
    """Lying bars from 0, each with its name above and its value at its end."""
    height = TOP + ROW * 1.25 * len(found)
    room = max(len(bar.label) for bar in found) * LETTER + 14
    xs = svg.linear([value for bar in found for value in (bar.value, bar.high or 0.0)], 8, WIDTH - RIGHT - room)
    parts = list(_x_axis(xs, axis, TOP, height))
    for number, bar in enumerate(found):
        y = TOP + ROW * 1.25 * number
        end = xs.at(bar.value)
        parts.append(svg.text(10, y + 12, shortened(bar.name, BAR_NAME_LETTERS), "name"))
        parts.append(svg.bar(8, y + 17, end - 8, 13, f"bar {svg.colour(bar.number)}", bar.told))
        if bar.low is not None and bar.high is not None:
            parts.append(svg.line(xs.at(bar.low), y + 23.5, xs.at(bar.high), y + 23.5, "whisker ink"))
            end = max(end, xs.at(bar.high))
        parts.append(svg.text(end + 6, y + 28, bar.label, "value"))
    return svg.drawing(name, title, description, (WIDTH, height + BOTTOM), parts)


def strips(name: str, title: str, description: str, found: Sequence[Strip], axis: Axis, floor: float) -> str:
    """A row of dots for each name on a logarithmic scale, with a box from 5 % to 95 % and a line at the median.

    Values below `floor` lie on it.
    """
    height = TOP + ROW * 1.6 * len(found)
    shown = [max(value, floor) for strip in found for value in strip.values]
    xs = svg.logarithmic([*shown, max(shown) * 1.5], 14, WIDTH - RIGHT - 4)
    parts = list(_x_axis(xs, axis, TOP, height))
    for number, strip in enumerate(found):
        parts += _strip(strip, xs, TOP + ROW * 1.6 * number, floor)
    return svg.drawing(name, title, description, (WIDTH, height + BOTTOM), parts)


def _strip(strip: Strip, xs: Scale, y: float, floor: float) -> Iterator[str]:
    values = [max(value, floor) for value in strip.values]
    low, middle, high = (xs.at(stats.percentile(values, percent)) for percent in (5, 50, 95))
    told = (
        f"{strip.name}: median {median(strip.values):.2g}, 95 % of texts below {stats.percentile(strip.values, 95):.2g}"
    )
    yield svg.text(10, y + 12, shortened(strip.name, BAR_NAME_LETTERS), "name")
    yield svg.bar(low, y + 18, high - low, 22, f"box {svg.colour(strip.number)}", told)
    for number, value in enumerate(values):
        # the golden ratio spreads neighbours over the row, the same way each time
        offset = (number * 0.618034) % 1 * 18
        yield (
            f"<circle cx='{xs.at(value):.1f}' cy='{y + 20 + offset:.1f}' r='2' class='dot {svg.colour(strip.number)}'/>"
        )
    yield svg.line(middle, y + 16, middle, y + 42, "median")


def rows(
    name: str, title: str, description: str, found: Sequence[Row], legend: Sequence[tuple[str, int]], axis: Axis
) -> str:
    """A row for each name, with a mark for each series; the axis begins where its first tick is."""
    drawn_legend = _legend(legend)
    top = TOP + len(drawn_legend) * LEGEND_ROW
    left = 18 + LETTER * max(len(shortened(row.name)) for row in found)
    bottom = top + ROW * 0.8 * len(found) + 6
    xs = _scale([], axis, left + 8, WIDTH - RIGHT - 12)
    parts = [*_drawn_legend(drawn_legend), *_x_axis(xs, axis, top, bottom)]
    for number, row in enumerate(found):
        y = top + 6 + ROW * 0.8 * (number + 0.5)
        parts.append(svg.text(8, y + 4, shortened(row.name), "name"))
        parts.append(svg.line(left, y, WIDTH - RIGHT, y, "grid"))
        step = min(5.0, ROW * 0.6 / len(row.marks))  # marks of one value lie below each other, not on each other
        for place, (series, value, told) in enumerate(row.marks):
            parts.append(svg.marker(xs.at(value), y + step * (place - (len(row.marks) - 1) / 2), series, told))
    return svg.drawing(name, title, description, (WIDTH, bottom + BOTTOM), parts)


def points(name: str, title: str, description: str, found: Sequence[Series], axes: tuple[Axis, Axis]) -> str:
    """One point for each name, and a line through those that no other beats in both."""
    x, y = axes
    legend = _legend([(one.name, one.number) for one in found])
    top = TOP + len(legend) * LEGEND_ROW
    bottom = top + PLOT_HEIGHT
    everything = [point for one in found for point in one.points]
    ys = _scale([p.y for p in everything], y, bottom - 8, top + 8)
    xs = _scale([p.x for p in everything], x, _left(ys, y) + 10, WIDTH - RIGHT - 10)
    parts = [*_drawn_legend(legend), *_grid(xs, ys, axes, (top, bottom))]
    front = [(xs.at(p.x), ys.at(p.y)) for p in unbeaten(everything)]
    parts.append(svg.path(front, "front"))
    for one in found:
        parts += [svg.marker(xs.at(p.x), ys.at(p.y), one.number, p.told, 6) for p in one.points]
    return svg.drawing(name, title, description, (WIDTH, bottom + BOTTOM), parts)


def unbeaten(found: Sequence[Point]) -> list[Point]:
    """Points to whose right none lies lower, from left to right: more of x is better, less of y.

    >>> [p.told for p in unbeaten([Point(1, 1, "slow, good"), Point(2, 3, "beaten"), Point(3, 2, "fast")])]
    ['slow, good', 'fast']
    """
    return sorted(
        (p for p in found if not any((q.x >= p.x and q.y <= p.y) and (q.x > p.x or q.y < p.y) for q in found)),
        key=lambda p: p.x,
    )


def shortened(words: str, letters: int = NAME_LETTERS) -> str:
    """A name that fits.

    >>> shortened("openvino-int8", 8)
    'openvin…'
    """
    return words if len(words) <= letters else f"{words[: letters - 1]}…"


def _legend(names: Sequence[tuple[str, int]]) -> list[list[tuple[float, str, int]]]:
    """Rows of (x, name, number) that fit the width."""
    rows: list[list[tuple[float, str, int]]] = []
    x = WIDTH
    for name, number in names:
        words = shortened(name)
        width = len(words) * LETTER + 26
        if x + width > WIDTH - RIGHT:
            rows.append([])
            x = 8.0
        rows[-1].append((x, words, number))
        x += width
    return rows


def _drawn_legend(rows: list[list[tuple[float, str, int]]]) -> Iterator[str]:
    for row, names in enumerate(rows):
        y = TOP + row * LEGEND_ROW - 2
        for x, words, number in names:
            yield svg.marker(x + 4, y, number)
            yield svg.text(x + 13, y + 4, words, "name")
