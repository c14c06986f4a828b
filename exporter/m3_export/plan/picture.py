"""A plan as a picture: layers × projections coloured by precision, and beside it the front of parity against time."""

import math
from collections.abc import Iterator, Sequence

from m3_export.plan.plan import Choice, Kind, Plan, Precision
from m3_export.plan.planner import Planned
from m3_export.plan.search import Tried

COLOURS = {Precision.STATIC: "#2a9d8f", Precision.DYNAMIC: "#e9c46a", Precision.FLOAT: "#e76f51"}
ROW, COLUMN, LEFT, TOP = 16, 92, 64, 74
CHART_WIDTH, CHART_HEIGHT = 360, 240
STYLE = "font-family='system-ui,sans-serif' font-size='11' fill='#222'"


def picture(name: str, planned: Planned) -> str:
    """An SVG; each cell tells its choice when pointed at."""
    layers = 1 + max(place.layer for place in planned.plan.choices)
    grid_width, height = LEFT + COLUMN * len(Kind) + 40, max(TOP + ROW * layers + 50, TOP + CHART_HEIGHT + 60)
    width = grid_width + (CHART_WIDTH + 90 if planned.tried else 0)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' {STYLE}>",
        f"<rect width='{width}' height='{height}' fill='white'/>",
        _text(LEFT, 22, f"{name}: {_summary(planned)}", "font-size='15' font-weight='600'"),
        *_grid(planned.plan, layers),
        *_legend(TOP + ROW * layers + 24),
    ]
    if planned.tried:
        parts += _front(planned.tried, planned.plan, grid_width + 50)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _summary(planned: Planned) -> str:
    kinds = [choice.precision for choice in planned.plan.choices.values()]
    counts = ", ".join(f"{kinds.count(p)} {p}" for p in Precision if p in kinds)
    cost = "" if planned.cost is None else f"; its products take {planned.cost:.2f} of the float time"
    return counts + cost


def _grid(plan: Plan, layers: int) -> Iterator[str]:
    for column, kind in enumerate(Kind):
        yield _text(LEFT + COLUMN * (column + 0.5), TOP - 8, kind.value.replace("_", " "), "text-anchor='middle'")
    for layer in range(layers):
        yield _text(LEFT - 8, TOP + ROW * (layer + 0.75), f"layer {layer}", "text-anchor='end'")
    for place, choice in plan.choices.items():
        x, y = LEFT + COLUMN * list(Kind).index(place.kind), TOP + ROW * place.layer
        yield (
            f"<rect x='{x + 1}' y='{y + 1}' width='{COLUMN - 2}' height='{ROW - 2}' rx='2' "
            f"fill='{COLOURS[choice.precision]}'><title>{place}: {_told(choice)}</title></rect>"
        )


def _told(choice: Choice) -> str:
    words = [choice.precision.value]
    words += [f"smoothing {choice.smoothing:g}"] if choice.smoothing else []
    words += [f"{choice.clip:.0%} of the range"] if choice.clip < 1 else []
    words += [f"{choice.columns_apart} channels apart"] if choice.columns_apart else []
    return ", ".join(words)


def _legend(y: float) -> Iterator[str]:
    for number, (precision, colour) in enumerate(COLOURS.items()):
        x = LEFT + number * COLUMN
        yield f"<rect x='{x}' y='{y - 9}' width='10' height='10' rx='2' fill='{colour}'/>"
        yield _text(x + 14, y, precision.value)


def _front(tried: Sequence[Tried], chosen: Plan, left: float) -> Iterator[str]:
    """Dense loss, in a logarithmic scale, against the time of the products."""
    costs, losses = [t.cost for t in tried], [max(t.losses.dense_mean, 1e-9) for t in tried]
    low, high = min(costs), max(costs)
    bottom, top = math.floor(math.log10(min(losses))), math.ceil(math.log10(max(losses)))

    def x_of(cost: float) -> float:
        return left + CHART_WIDTH * (cost - low) / max(high - low, 1e-9)

    def y_of(loss: float) -> float:
        return TOP + CHART_HEIGHT * (top - math.log10(loss)) / max(top - bottom, 1)

    yield _text(left, TOP - 30, "Simulated plans: loss of the dense vector against time", "font-weight='600'")
    for power in range(bottom, top + 1):
        y = y_of(10.0**power)
        yield f"<line x1='{left}' y1='{y:.1f}' x2='{left + CHART_WIDTH}' y2='{y:.1f}' stroke='#ddd'/>"
        yield _text(left - 6, y + 4, f"1e{power}", "text-anchor='end'")
    points = " ".join(f"{x_of(c):.1f},{y_of(v):.1f}" for c, v in zip(costs, losses, strict=True))
    yield f"<polyline points='{points}' fill='none' stroke='#264653' stroke-width='1.5'/>"
    for one, cost, loss in zip(tried, costs, losses, strict=True):
        is_chosen = one.plan == chosen
        yield (
            f"<circle cx='{x_of(cost):.1f}' cy='{y_of(loss):.1f}' r='{6 if is_chosen else 3}' "
            f"fill='{'#e63946' if is_chosen else '#264653'}'><title>time {cost:.3f}, 1 - dense cosine {loss:.2g}"
            f"{', this plan' if is_chosen else ''}</title></circle>"
        )
    axis = TOP + CHART_HEIGHT + 18
    yield _text(left, axis, f"{low:.2f}")
    yield _text(left + CHART_WIDTH, axis, f"{high:.2f}", "text-anchor='end'")
    yield _text(left + CHART_WIDTH / 2, axis + 16, "time of the products, float = 1", "text-anchor='middle'")


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' {more}>{words}</text>"
