"""The charts of a report, drawn by Matplotlib as SVG that goes into a page: text stays text, colours are CSS variables.

Each is None where there is too little to draw. The same values give the same bytes: ids come from the chart's name, and
nothing is dated.
"""

import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from m3_bench import formats
from m3_bench.documents import Retrieval, Scenario, Soak
from m3_bench.figures import Figures, Measurement, Parity
from m3_bench.report.page import Chart
from m3_bench.report.searches import main_metric
from m3_bench.stats import MAIN_METRIC

FLOOR = 1e-8
"""Losses below it are the order in which threads add; documents keep as many digits."""
INK, MUTED, GRID, CARD = "#1b1f24", "#5b6570", "#e2e5e9", "#ffffff"
COLOURS = ("#1f6feb", "#d9480f", "#0b8a5f", "#8b3fc7", "#a8770a", "#c2255c", "#0b7285", "#5c636b")
_MARKERS = "os^DvPXd"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", CARD: "--card"}
_VARIABLES |= {colour: f"--c{number}" for number, colour in enumerate(COLOURS)}
# What only a file of its own needs: styles and ids would meet those of the page's other charts. Nothing is clipped.
_FILE_ONLY = re.compile(
    r"""<style.*?</style>|<metadata>.*?</metadata>|<clipPath.*?</clipPath>| clip-path="[^"]*"|(?<=<g) id="[^"]*"|"""
    """font-family: [^;"]*; |xlink:(?=href)""",
    re.DOTALL,
)
_WIDTH = 440  # points, which are pixels of the SVG; the page scales it
_LEGEND_LETTERS = 64  # of two columns side by side
_STYLE = Path(__file__).with_name("templates") / "charts.mplstyle"


@dataclass(frozen=True)
class Points:
    """Points of one name, from left to right; `order` chooses colour and marker, whiskers go from `low` to `high`."""

    name: str
    order: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    def plot(self, plot: Axes, line: str = "") -> None:
        """Draw the marks, with a line of this style."""
        colour, marker = _colour(self.order), _MARKERS[self.order % len(_MARKERS)]
        style: dict[str, Any] = {"color": colour, "markeredgecolor": CARD, "clip_on": False, "label": _cut(self.name)}
        plot.plot(self.x, self.y, marker + line, **style)
        plot.vlines(self.x[: len(self.low)], self.low, self.high, colour, linewidth=1.3, alpha=0.75)


@dataclass(frozen=True)
class Bar:
    """A contender's value with the ends of its whisker; `label` is the value in words."""

    name: str
    order: int
    value: float
    low: float
    high: float
    label: str


def is_single(scenario: Scenario) -> bool:
    """Whether it is one text by one caller."""
    return len(scenario.lengths) == 1 and scenario.clients == 1


def with_most_heads(scenarios: Sequence[Scenario]) -> list[Scenario]:
    """Those with the most heads, so that a dense-only call is not compared with a whole one."""
    most = max((len(s.heads) for s in scenarios), default=0)
    return [s for s in scenarios if len(s.heads) == most]


def latency_by_length(figures: Figures) -> Chart | None:
    """p50 of one text by one caller."""

    def point(figure: Measurement) -> tuple[float, ...]:
        p50_ms, p95_s = figure.latency.p50_s * 1e3, figure.latency.p95_s
        return p50_ms, p50_ms, p50_ms if p95_s is None else p95_s * 1e3

    scenarios = [s for s in with_most_heads(figures.scenarios) if is_single(s)]
    caption = "One text, one caller, all heads. Whiskers reach to p95 where there are calls enough. Lower is better."
    axes = "tokens of the text", "milliseconds, p50"
    series = _series(figures, scenarios, lambda s: s.tokens, point)
    return _lines("latency-by-length", "Latency by length", caption, axes, series, is_log=True)


def throughput_by_batch(figures: Figures) -> Chart | None:
    """Tokens per second of calls with several texts of one length, the length that most scenarios have."""
    whole = [s for s in with_most_heads(figures.scenarios) if s.clients == 1 and len(set(s.lengths)) == 1]
    lengths = Counter(s.lengths[0] for s in whole)
    length = max(lengths, key=lambda one: (lengths[one], one), default=0)
    caption = f"Texts of {length} tokens, one caller. Whiskers: lowest and highest round. Higher is better."
    series = _series(figures, [s for s in whole if s.lengths[0] == length], lambda s: len(s.lengths), _speed)
    return _lines("throughput-by-batch", "Throughput by batch", caption, ("texts in a call", "tokens/s"), series)


def throughput_by_clients(figures: Figures) -> Chart | None:
    """Tokens per second of several callers."""
    many = [s for s in figures.scenarios if s.clients > 1]
    shapes = {(s.lengths, s.heads) for s in many}
    scenarios = [s for s in figures.scenarios if (s.lengths, s.heads) in shapes] if len(shapes) == 1 else many
    lengths = f"{len(many[0].lengths)} × {max(many[0].lengths)} tokens" if many else ""
    caption = f"Calls of {lengths}; callers share one loaded model. Higher is better."
    series = _series(figures, scenarios, lambda s: s.clients, _speed)
    return _lines("throughput-by-clients", "Throughput by callers", caption, ("callers at a time", "tokens/s"), series)


def throughput(figures: Figures, load: Scenario | None) -> Chart | None:
    """Tokens per second at the load."""
    bars = []
    for figure in sorted(figures.at(load), key=lambda one: -one.tokens_per_s.median):
        speed, entry = figure.tokens_per_s, figure.entry
        words = f"{formats.number(speed.median)} tokens/s"
        bars.append(Bar(entry.label, entry.order, speed.median, speed.low, speed.high, words))
    title = f"Throughput: {load.title}" if load else ""
    return _bars("throughput", title, "Median, lowest and highest round. Higher is better.", "tokens/s", bars)


def parity_of_texts(parities: Sequence[Parity]) -> list[Chart | None]:
    """For each head, what the texts lost."""
    caption = "The median text; whiskers hold 90 % of the texts. Further left is better."
    charts = []
    for head, what, distance in (
        ("dense", "Dense vectors", "1 − cosine of a text"),
        ("jaccard", "Sparse weights", "1 − weighted Jaccard of a text"),
        ("colbert", "ColBERT vectors", "1 − mean cosine of a text's rows"),
    ):
        bars = []
        for one in parities:
            if kept := getattr(one.compared.texts, head):
                low, middle, high = np.percentile(np.maximum(1 - np.asarray(kept), FLOOR), (5, 50, 95))
                bars.append(Bar(one.entry.label, one.entry.order, middle, low, high, f"{middle:.2g}"))
        charts.append(
            _bars(f"parity-{head}", f"{what}: distance to the reference", caption, distance, bars, is_log=True)
        )
    return charts


def memory_over_time(soaks: Sequence[Soak]) -> Chart | None:
    """What servers hold between requests, hour by hour."""

    def draw(plot: Axes) -> None:
        for order, soak in enumerate(soaks):
            x = [one.seconds / 60 for one in soak.cycles]
            for values, width in (("resident_bytes", 1.8), ("peak_bytes", 0.6)):
                y = [getattr(one, values) / 1e6 for one in soak.cycles]
                plot.plot(x, y, color=_colour(order), linewidth=width)
            plot.annotate(
                soak.variant,
                (x[-1], soak.cycles[-1].resident_bytes / 1e6),
                (-4, -12),
                textcoords="offset points",
                ha="right",
            )
        plot.set_ylim(bottom=0)
        plot.margins(0.02, 0.1)
        _finish(plot.xaxis, "minutes")
        _finish(plot.yaxis, "megabytes resident")

    caption = "Thick: at the end of each cycle, with no request under way. Thin: the most under load."
    return _chart("memory-over-time", "Memory over time", caption, 220, draw) if soaks else None


def search_quality(number: int, document: Retrieval) -> Chart | None:
    """The main metric of every method, best first; a mark for each variant."""
    means = {
        (f"{run.bundle if len(document.models) > 1 else ''} {run.variant}".strip() or "no heads", run.method): fmean(
            values
        )
        for run in document.methods
        if (values := main_metric(run))
    }
    best: dict[str, float] = {}
    for (_, method), mean in means.items():
        best[method] = max(best.get(method, 0.0), mean)
    methods = sorted(best, key=lambda method: -best[method])
    names = list(dict.fromkeys(name for name, _ in means))
    series = []
    for n, name in enumerate(names):
        step = min(0.18, 0.6 / len(names)) * (n - (len(names) - 1) / 2)  # equal values lie below each other
        marks = [(mean, methods.index(method) + step) for (other, method), mean in means.items() if other == name]
        series.append(Points(name, n, *zip(*marks, strict=True)))

    def draw(plot: Axes) -> None:
        for one in series:
            one.plot(plot)
        plot.set_yticks(range(len(methods)), [_cut(method, 30) for method in methods])
        plot.set_ylim(len(methods) - 0.4, -0.6)
        plot.margins(x=0.06)
        _finish(plot.xaxis, MAIN_METRIC)
        plot.tick_params(length=0)

    caption = "A row is a method, a mark a variant. Further right is better; mind where the axis begins."
    title = f"{MAIN_METRIC} on {document.dataset.name}"
    return _chart(f"retrieval-{number}", title, caption, 70 + 24 * len(methods), draw, series) if series else None


def _series(
    figures: Figures,
    scenarios: Sequence[Scenario],
    x_of: Callable[[Scenario], int],
    point_of: Callable[[Measurement], tuple[float, ...]],
) -> list[Points]:
    """Each contender's points, from left to right; `point_of` gives a value, and the ends of its whisker if any."""
    names = {scenario.name for scenario in scenarios}
    series = []
    for entry in figures.measured:
        found = sorted((f for f in figures.of(entry) if f.scenario.name in names), key=lambda f: x_of(f.scenario))
        if found:
            points = zip(*map(point_of, found), strict=True)
            series.append(Points(entry.label, entry.order, [x_of(f.scenario) for f in found], *points))
    return series


def _speed(figure: Measurement) -> tuple[float, ...]:
    speed = figure.tokens_per_s
    return speed.median, speed.low, speed.high


def _lines(
    name: str, title: str, caption: str, axes: tuple[str, str], series: Sequence[Points], *, is_log: bool | None = None
) -> Chart | None:
    """Lines over a number, the reference's dashed; None where there is but one.

    `axes` are titles; values are on a logarithmic axis if asked, or else if a GPU would press CPUs to the floor.
    """
    if not any(len(one.x) > 1 for one in series):
        return None
    values = [value for one in series for value in (*one.y, *one.low, *one.high)]
    ticks = sorted({x for one in series for x in one.x})

    def draw(plot: Axes) -> None:
        for one in series:
            one.plot(plot, "--" if one.order < 0 else "-")
        plot.margins(0.04, 0.08)
        plot.set_xscale("log")
        if is_log or (is_log is None and max(values) > 20 * min(values)):
            plot.set_yscale("log")
            plot.set_ylim(*_log_limits(values))
        else:
            plot.set_ylim(bottom=0)
        _finish(plot.xaxis, axes[0], FixedLocator(ticks, nbins=8))
        _finish(plot.yaxis, axes[1])

    return _chart(name, title, caption, 220, draw, series)


def _bars(name: str, title: str, caption: str, unit: str, bars: Sequence[Bar], *, is_log: bool = False) -> Chart | None:
    """Horizontal bars, each with its name above, a whisker, and its figure behind both."""
    if not bars:
        return None
    left, right = _log_limits([end for one in bars for end in (one.low, one.high)]) if is_log else (0.0, 0.0)

    def draw(plot: Axes) -> None:
        for row, one in enumerate(bars):
            plot.barh(row + 0.12, one.value - left, 0.36, left, color=_colour(one.order), alpha=0.85)
            plot.hlines(row + 0.12, one.low, one.high, INK, linewidth=1.3)
            at: dict[str, Any] = {"textcoords": "offset points", "annotation_clip": False}
            plot.annotate(_cut(one.name, 60), (left, row - 0.1), (0, 2), **at)
            plot.annotate(one.label, (one.high, row + 0.12), (5, 0), va="center", fontweight="bold", **at)
        room = 7.5 * max(len(one.label) for one in bars) / _WIDTH
        if is_log:
            plot.set_xscale("log")
            plot.set_xlim(left, right * (right / left) ** (room / (0.95 - room)))
        else:
            plot.set_xlim(0, max(one.high for one in bars) / (0.95 - room) or 1)
        plot.set_ylim(len(bars) - 0.5, -0.6)
        plot.yaxis.set_visible(False)
        plot.spines.left.set_visible(False)
        _finish(plot.xaxis, unit)

    return _chart(name, title, caption, 60 + 39 * len(bars), draw)


def _chart(
    name: str, title: str, caption: str, height: float, draw: Callable[[Axes], None], series: Sequence[Points] = ()
) -> Chart:
    """What `draw` makes of empty axes, with a legend of `series`, and title and description for screen readers."""
    names, half = [_cut(one.name) for one in series], math.ceil(len(series) / 2)
    widths = [max(map(len, names[start : start + half]), default=0) for start in (0, half)]
    columns = 2 if sum(widths) <= _LEGEND_LETTERS else 1
    room = 60 + 17 * math.ceil(len(series) / columns) if series else 0
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}, fname=_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has fonts of its own
        canvas = Canvas(figsize=(_WIDTH / 72, (height + room) / 72))
        draw(canvas.add_subplot())
        if series:
            canvas.legend(loc="outside upper left", ncols=columns)
        canvas.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    found = re.search(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>(.*)', file.getvalue(), re.DOTALL)
    assert found is not None
    drawing = re.sub(r"\s+", " ", _FILE_ONLY.sub("", found[2])).strip()
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    svg = (
        f'<svg class="chart" role="img" aria-labelledby="{name}-title {name}-desc" {found[1]} '
        'xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(caption)}</desc>{drawing}'
    )
    return Chart(title, caption, svg)


def _finish(axis: Axis, title: str, locator: Locator | None = None) -> None:
    """Title and ticks of an axis whose limits are set."""
    axis.set_label_text(title)
    if locator is None and axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        locator = LogLocator(subs=(1,) if high > 200 * low else (1, 2, 5), numticks=12)
    axis.set_major_locator(locator or MaxNLocator(5, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_tick_params(which="both", length=0)


def _tick(value: float) -> str:
    """A tick's label.

    >>> _tick(20000.0), _tick(0.002), _tick(1e-4)
    ('20 000', '0.002', '10⁻⁴')
    """
    exponent = math.log10(value) if 0 < value < 0.01 else 0.5
    if math.isclose(exponent, round(exponent)):
        return "10" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value:,.6g}".replace(",", " ")


def _log_limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(1.3, (high / low) ** 0.06)
    return low / room, max(high * room, low * 6)


def _colour(order: int) -> str:
    """The same for a contender in every chart; the last one is the reference's."""
    return COLOURS[order % (len(COLOURS) - 1)] if order >= 0 else COLOURS[-1]


def _cut(text: str, most: int = 56) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
