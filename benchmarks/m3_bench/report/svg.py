"""The parts that charts are drawn with. Colours are classes, so that a page has them light and dark."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 8
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Scale:
    """From values between `low` and `high` to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies; what is outside lies on the edge.

        >>> Scale(1, 100, 0, 200, is_log=True).at(10)
        100.0
        """
        low, high, one = (
            (map(math.log10, (self.low, self.high, value))) if self.is_log else (self.low, self.high, value)
        )
        share = min(1.0, max(0.0, (one - low) / (high - low)))
        return self.start + share * (self.end - self.start)


def linear(values: Iterable[float], start: float, end: float) -> Scale:
    """A scale from 0 to a little above the highest value."""
    top = max(values, default=0.0) or 1.0
    step = _step(top)
    return Scale(0.0, math.ceil(top * 1.02 / step) * step, start, end)


def logarithmic(values: Iterable[float], start: float, end: float) -> Scale:
    """A logarithmic scale whose ends are 1, 2 or 5 times a power of ten; values must be above 0."""
    found = list(values) or [1.0]
    low, high = _down(min(found) * 0.999), _up(max(found) * 1.001)
    return Scale(low, high if high > low else low * 10, start, end, is_log=True)


def ticks(scale: Scale) -> list[float]:
    """Where to draw grid lines.

    >>> ticks(Scale(0, 30, 0, 1)), ticks(Scale(1, 100, 0, 1, is_log=True))
    ([0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0], [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0])
    """
    if not scale.is_log:
        step = _step(scale.high)
        return [step * n for n in range(round(scale.high / step) + 1)]
    powers = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    decades = math.log10(scale.high / scale.low)
    each = (1.0, 2.0, 5.0) if decades <= 2.1 else (1.0,)
    skip = math.ceil(decades / 7)
    found = [digit * 10.0**power for power in powers if power % skip == 0 for digit in each]
    return [value for value in found if scale.low * 0.999 <= value <= scale.high * 1.001]


def _step(top: float) -> float:
    """A step of 1, 2, 2.5 or 5 times a power of ten that gives at most seven.

    >>> _step(30), _step(1560.0)
    (5.0, 250.0)
    """
    power = 10.0 ** math.floor(math.log10(top / 7))
    return next(power * digit for digit in (1, 2, 2.5, 5, 10) if top / (power * digit) <= 7)


def _down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return max((digit * power for digit in (1, 2, 5) if digit * power <= value), default=power)


def _up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return min(digit * power for digit in (1, 2, 5, 10) if digit * power >= value)


def power_of_ten(value: float) -> str:
    """A tick of a wide logarithmic scale.

    >>> power_of_ten(1e-6), power_of_ten(2e-4), power_of_ten(0.05)
    ('10⁻⁶', '2·10⁻⁴', '5·10⁻²')
    """
    if value >= 0.1:
        return f"{value:g}"
    digit, power = f"{value:.0e}".split("e")
    return f"{'' if digit == '1' else f'{digit}·'}10{str(int(power)).translate(_SUPERSCRIPTS)}"


def text(x: float, y: float, words: str, name: str = "", anchor: str = "start") -> str:
    """Words at a place; `name` are classes."""
    kind = f" class='{name}'" if name else ""
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'{kind}>{escape(words)}</text>"


def line(x1: float, y1: float, x2: float, y2: float, name: str) -> str:
    """A line of a class."""
    return f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' class='{name}'/>"


def path(points: Sequence[tuple[float, float]], name: str) -> str:
    """A line through points."""
    return f"<polyline points='{' '.join(f'{x:.1f},{y:.1f}' for x, y in points)}' class='{name}'/>"


def bar(x: float, y: float, width: float, height: float, name: str, told: str) -> str:
    """A bar that tells its value when pointed at."""
    shape = f"x='{x:.1f}' y='{y:.1f}' width='{max(width, 0.5):.1f}' height='{height:.1f}' rx='2'"
    return f"<rect {shape} class='{name}'><title>{escape(told)}</title></rect>"


def _circle(x: float, y: float, r: float) -> str:
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{r:.1f}'"


def _square(x: float, y: float, r: float) -> str:
    return f"<rect x='{x - r:.1f}' y='{y - r:.1f}' width='{2 * r:.1f}' height='{2 * r:.1f}'"


def _polygon(corners: Sequence[tuple[float, float]]) -> Callable[[float, float, float], str]:
    def drawn(x: float, y: float, r: float) -> str:
        return f"<polygon points='{' '.join(f'{x + r * a:.1f},{y + r * b:.1f}' for a, b in corners)}'"

    return drawn


_PLUS = ((-2, -6), (2, -6), (2, -2), (6, -2), (6, 2), (2, 2), (2, 6), (-2, 6), (-2, 2), (-6, 2), (-6, -2), (-2, -2))
_SHAPES = (
    _circle,
    _square,
    _polygon([(0, -1.25), (1.2, 0.9), (-1.2, 0.9)]),
    _polygon([(0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)]),
    _polygon([(0, 1.25), (1.2, -0.9), (-1.2, -0.9)]),
    _polygon([(0, -1.2), (1.15, -0.35), (0.7, 1), (-0.7, 1), (-1.15, -0.35)]),
    _polygon([(-1.2, -1), (1.2, -1), (0, 0), (1.2, 1), (-1.2, 1), (0, 0)]),
    _polygon([(x / 5, y / 5) for x, y in _PLUS]),
)
"""Shapes tell series apart where colours do not: on paper, and for who does not see them."""


def marker(x: float, y: float, series: int, told: str = "", radius: float = 4.0) -> str:
    """A series' mark, which tells its value when pointed at."""
    shape = _SHAPES[series % len(_SHAPES)](x, y, radius)
    title = f"<title>{escape(told)}</title>" if told else ""
    return f"{shape} class='mark {colour(series)}'>{title}</{shape[1:].split()[0]}>"


def colour(series: int) -> str:
    """The class of a series' colour."""
    return f"s{series % COLOURS}"


def drawing(name: str, title: str, description: str, size: tuple[float, float], parts: Iterable[str]) -> str:
    """A chart with a text alternative; it takes the width that it is given."""
    width, height = size
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' class='chart' role='img' "
            f"aria-labelledby='{name}-title {name}-desc'>",
            f"<title id='{name}-title'>{escape(title)}</title>",
            f"<desc id='{name}-desc'>{escape(description)}</desc>",
            *parts,
            "</svg>",
        ]
    )
