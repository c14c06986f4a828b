"""Kinds of charts, drawn by Matplotlib as SVG that goes into a page: text stays text, colours are CSS variables.

The same values give the same bytes: ids come from the chart's name, and nothing is dated.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from m3_bench.formats import plain

INK, MUTED, GRID, CARD = "#1b1f24", "#5b6570", "#e2e5e9", "#ffffff"
SERIES = ("#1f6feb", "#d9480f", "#0b8a5f", "#8b3fc7", "#a8770a", "#c2255c", "#0b7285", "#5c636b")
REFERENCE = len(SERIES) - 1
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", CARD: "--card"}
_VARIABLES |= {colour: f"--c{number}" for number, colour in enumerate(SERIES)}
_MARKERS = "os^DvPXd"
# What only a file of its own needs: styles and ids would meet those of the page's other charts. Nothing is clipped.
_FILE_ONLY = re.compile(
    r"""<style.*?</style>|<metadata>.*?</metadata>|<clipPath.*?</clipPath>| clip-path="[^"]*"|(?<=<g) id="[^"]*"|"""
    """font-family: [^;"]*; |xlink:(?=href)""",
    re.DOTALL,
)
_WIDTH = 440  # points, which are pixels of the SVG; the page scales it
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "lines.linewidth": 1.8,
    "lines.markeredgewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class Axis:
    """What an axis shows, with its unit; `ticks` are chosen for you if empty."""

    title: str
    is_log: bool = False
    ticks: tuple[float, ...] = ()
    format: Callable[[float], str] = plain


@dataclass(frozen=True)
class Points:
    """Points of one name; `number` chooses colour and marker, `spread` holds the ends of whiskers."""

    name: str
    number: int
    x: tuple[float, ...]
    y: tuple[float, ...] = ()
    spread: tuple[tuple[float, float] | None, ...] = ()


@dataclass(frozen=True)
class Bar:
    """A bar with words at its end."""

    name: str
    number: int
    value: float
    label: str


def power_of_ten(value: float) -> str:
    """A tick of a logarithmic axis.

    >>> power_of_ten(1e-4)
    '10⁻⁴'
    """
    return "10" + str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def lines(
    name: str,
    texts: tuple[str, str],
    series: Sequence[Points],
    axes: tuple[Axis, Axis],
    front: Sequence[tuple[float, float]] = (),
) -> str:
    """Lines over a number, or points where there is one a series; the reference's is dashed.

    `texts` are title and description, `front` the ends of a dotted line.
    """
    with _canvas(name, 220 + _legend_height(series)) as (canvas, plot):
        for one in series:
            dashes = "--" if one.number == REFERENCE else "-"
            style: dict[str, Any] = {
                "marker": _marker(one.number),
                "markeredgecolor": CARD,
                "markersize": 7,
                "clip_on": False,
            }
            plot.plot(one.x, one.y, dashes, color=_colour(one.number), label=_shortened(one.name), **style)
            for x, spread in zip(one.x, one.spread, strict=False):
                if spread:
                    plot.plot((x, x), spread, color=_colour(one.number), linewidth=1.3, alpha=0.75)
        if front:
            plot.plot(*zip(*front, strict=True), ":", color=MUTED, zorder=1)
        _finish(plot, axes)
        _legend(canvas, series)
        return _svg(canvas, name, texts)


def bars(name: str, texts: tuple[str, str], found: Sequence[Bar], axis: Axis) -> str:
    """Lying bars from 0, each with its name above and its label at its end."""
    with _canvas(name, 60 + 39 * len(found)) as (canvas, plot):
        for row, bar in enumerate(found):
            plot.barh(row + 0.12, bar.value, 0.36, color=_colour(bar.number))
            plot.annotate(_shortened(bar.name, 60), (0, row - 0.1), (0, 2), textcoords="offset points")
            end: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontweight": "bold"}
            plot.annotate(bar.label, (bar.value, row + 0.12), (5, 0), **end)
        room = 7.5 * max(len(bar.label) for bar in found) / _WIDTH
        plot.set_xlim(0, max(bar.value for bar in found) / (0.95 - room) or 1)
        _finish_rows(plot, axis, len(found))
        return _svg(canvas, name, texts)


def strips(name: str, texts: tuple[str, str], found: Sequence[Points], axis: Axis, floor: float) -> str:
    """A row of dots for each name, none below `floor`, with a box from 5 % to 95 % and a line at the median."""
    with _canvas(name, 60 + 48 * len(found)) as (canvas, plot):
        for row, strip in enumerate(found):
            values = np.maximum(strip.x, floor)
            low, middle, high = np.percentile(values, (5, 50, 95))
            # the golden ratio spreads neighbours over the row, the same way each time
            offsets = row - 0.08 + (np.arange(len(values)) * 0.618034) % 1 * 0.36
            style: dict[str, Any] = {"markersize": 4, "alpha": 0.55, "markeredgewidth": 0, "clip_on": False}
            plot.barh(row + 0.1, high - low, 0.46, low, color=_colour(strip.number), alpha=0.18)
            plot.plot(values, offsets, "o", color=_colour(strip.number), **style)
            plot.plot((middle, middle), (row - 0.18, row + 0.38), color=INK, linewidth=2)
            plot.annotate(_shortened(strip.name, 60), (0, row - 0.22), xycoords=plot.get_yaxis_transform(), va="bottom")
        plot.set_xscale("log")
        plot.set_xlim(*_log_limits([max(value, floor) for strip in found for value in strip.x]))
        _finish_rows(plot, axis, len(found))
        return _svg(canvas, name, texts)


def rows(name: str, texts: tuple[str, str], series: Sequence[Points], names: Sequence[str], axis: Axis) -> str:
    """A row for each of `names`, with a mark for each series: `x` are values, `y` the numbers of their rows."""
    with _canvas(name, 70 + 24 * len(names) + _legend_height(series)) as (canvas, plot):
        for number, one in enumerate(series):
            step = min(0.18, 0.6 / len(series)) * (number - (len(series) - 1) / 2)  # equal values lie below each other
            style: dict[str, Any] = {"markeredgecolor": CARD, "markersize": 7, "clip_on": False}
            places, colour = [row + step for row in one.y], _colour(one.number)
            plot.plot(one.x, places, _marker(one.number), color=colour, label=_shortened(one.name), **style)
        plot.set_yticks(range(len(names)), [_shortened(row, 30) for row in names])
        plot.set_ylim(len(names) - 0.4, -0.6)
        plot.margins(x=0.06)
        _format(plot, "x", axis)
        _legend(canvas, series)
        return _svg(canvas, name, texts)


@contextmanager
def _canvas(name: str, height: float) -> Iterator[tuple[Canvas, Axes]]:
    with mpl.rc_context(_STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has fonts of its own
        canvas = Canvas(figsize=(_WIDTH / 72, height / 72))
        yield canvas, canvas.add_subplot()


def _finish(plot: Axes, axes: tuple[Axis, Axis]) -> None:
    plot.margins(0.04, 0.08)
    if axes[1].is_log:
        plot.set_yscale("log")
        plot.set_ylim(
            *_log_limits(
                np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in plot.lines]).tolist()
            )
        )
    else:
        plot.set_ylim(bottom=0)
    if axes[0].is_log:
        plot.set_xscale("log")
    else:
        plot.set_xlim(left=0)
    _format(plot, "x", axes[0])
    _format(plot, "y", axes[1])


def _finish_rows(plot: Axes, axis: Axis, count: int) -> None:
    plot.set_ylim(count - 0.5, -0.6)
    plot.yaxis.set_visible(False)
    plot.spines.left.set_visible(False)
    _format(plot, "x", axis)


def _format(plot: Axes, which: str, axis: Axis) -> None:
    target = plot.xaxis if which == "x" else plot.yaxis
    (plot.set_xlabel if which == "x" else plot.set_ylabel)(axis.title)
    if axis.ticks:
        target.set_ticks(_apart(axis.ticks, is_log=axis.is_log))
    elif axis.is_log:
        low, high = plot.get_xlim() if which == "x" else plot.get_ylim()
        target.set_major_locator(LogLocator(subs=(1,) if high > 200 * low else (1, 2, 5), numticks=12))
    else:
        target.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    target.set_major_formatter(FuncFormatter(lambda value, _: axis.format(value)))
    target.set_minor_locator(NullLocator())
    plot.tick_params(which="both", length=0)


def _apart(ticks: Sequence[float], *, is_log: bool) -> list[float]:
    """Those ticks whose labels do not touch the one before."""
    at = np.log(ticks) if is_log else np.asarray(ticks)
    span = float(at[-1] - at[0]) or 1.0
    kept = [0]
    for n in range(1, len(ticks)):
        if (at[n] - at[kept[-1]]) / span > 0.02 * len(plain(ticks[n])) + 0.01:
            kept.append(n)
    return [ticks[n] for n in kept]


def _log_limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = max(1.3, (high / low) ** 0.06)
    return low / room, max(high * room, low * 6)


def _legend(canvas: Canvas, series: Sequence[Points]) -> None:
    canvas.legend(
        loc="outside upper left",
        ncols=_columns(series),
        frameon=False,
        handlelength=1.4,
        columnspacing=1,
        fontsize=10.5,
    )


def _legend_height(series: Sequence[Points]) -> float:
    return 60 + 17 * math.ceil(len(series) / _columns(series))


def _columns(series: Sequence[Points]) -> int:
    return 2 if max(len(one.name) for one in series) <= 30 else 1


def _colour(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _marker(number: int) -> str:
    return _MARKERS[number % len(_MARKERS)]


def _shortened(text: str, most: int = 56) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _svg(canvas: Canvas, name: str, texts: tuple[str, str]) -> str:
    """The drawing without what only a file of its own needs, with title and description for screen readers."""
    file = io.StringIO()
    canvas.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    found = re.search(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>(.*)', file.getvalue(), re.DOTALL)
    assert found is not None
    drawing = re.sub(r"\s+", " ", _FILE_ONLY.sub("", found[2]))
    for colour, variable in _VARIABLES.items():
        drawing = drawing.replace(colour, f"var({variable})")
    title, description = map(escape, texts)
    return (
        f'<svg class="chart" role="img" aria-labelledby="{name}-title {name}-desc" {found[1]} '
        'xmlns="http://www.w3.org/2000/svg">'
        f'<title id="{name}-title">{title}</title><desc id="{name}-desc">{description}</desc>{drawing}'
    ).strip()
