"""For each projection, the choices worth having: what each costs in time and how far off its product is.

The error is local: of the product for the calibration rows, relative to how the exact products differ from their mean.
Every row counts the same, so that a few large ones do not hide the others. A first sieve: what it does to the vectors
at the end is `sensitivity`'s question.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from m3_export.plan.costs import Costs
from m3_export.plan.forms import Heard, form_of, rendered
from m3_export.plan.plan import DYNAMIC, FLOAT, Choice, Kind, Precision, Projection
from m3_export.plan.simulate import Subject

STRENGTHS = (0.0, 0.3, 0.5, 0.7, 0.85)
CLIPS = (1.0, 0.8, 0.65, 0.5)
APART = 4  # outlier channels; more gain little and cost a wider product
MAX_TUNING_ROWS = 256


@dataclass(frozen=True)
class Option:
    """One choice for a projection, its cost (the float encoder's are 1 together) and its local error (0 is exact)."""

    choice: Choice
    cost: float
    error: float


def find_options(
    subject: Subject, costs: Costs, track: Callable[[Sequence[Projection]], Iterable[Projection]]
) -> Mapping[Projection, tuple[Option, ...]]:
    """The options of every projection, cheapest first, each one nearer to exact than the one before.

    Args:
        subject: the model and what was heard.
        costs: of the engine on this machine.
        track: wraps the iteration, for a progress bar.
    """
    with torch.inference_mode():
        return {place: _options(subject, costs, place) for place in track(list(subject.heard))}


def _options(subject: Subject, costs: Costs, place: Projection) -> tuple[Option, ...]:
    trial = _Trial(subject, place)
    choices = [FLOAT, DYNAMIC]
    if place.kind in (Kind.QKV, Kind.FFN_IN):  # what normalisations give has a few loud channels, always the same
        choices.append(Choice(Precision.DYNAMIC, columns_apart=APART))
    strength = min(STRENGTHS, key=lambda s: trial.error(Choice(Precision.DYNAMIC, s)))
    if strength:
        choices.append(Choice(Precision.DYNAMIC, strength))
    if Precision.STATIC in costs.precisions:
        choices.append(_best_static(trial))
    return hull(
        [Option(choice, costs.of(place.kind, choice, subject.layers), trial.error(choice)) for choice in choices]
    )


def _best_static(trial: "_Trial") -> Choice:
    """Strength first, at full range; then how much of the range to keep."""
    strength = min(STRENGTHS, key=lambda s: trial.error(Choice(Precision.STATIC, s)))
    return min((Choice(Precision.STATIC, strength, clip) for clip in CLIPS), key=trial.error)


class _Trial:
    """Tries choices on one projection; remembers errors."""

    def __init__(self, subject: Subject, place: Projection) -> None:
        heard = subject.heard[place]
        every = max(1, len(heard.rows) // MAX_TUNING_ROWS)
        self._heard = Heard(heard.lowest, heard.highest, heard.rows[::every], heard.after_gelu)
        self._group = subject.group
        self._weight = subject.weight(place)
        exact = self._heard.rows @ self._weight
        self._exact, self._spread = exact, (exact - exact.mean(0)).pow(2).sum(1).clamp(min=1e-12)
        self._errors: dict[Choice, float] = {FLOAT: 0.0}

    def error(self, choice: Choice) -> float:
        if choice not in self._errors:
            form = form_of(choice, self._heard, self._weight, self._group)
            compute = rendered(form, self._group, after_gelu=self._heard.after_gelu)
            off = compute(self._heard.rows) - self._exact
            self._errors[choice] = float((off.pow(2).sum(1) / self._spread).mean())
        return self._errors[choice]


def hull(options: Sequence[Option]) -> tuple[Option, ...]:
    """Those options that a line from a cheaper to a nearer one does not pass below, cheapest first.

    >>> from m3_export.plan.plan import DYNAMIC, FLOAT
    >>> dull = Option(Choice(Precision.DYNAMIC, 0.5), 2.5, 0.9)
    >>> [o.cost for o in hull([Option(FLOAT, 3, 0), Option(DYNAMIC, 2, 1), dull])]
    [2, 3]
    """
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.error)):
        if kept and option.error >= kept[-1].error:
            continue
        while len(kept) > 1 and worth(kept[-2], kept[-1]) <= worth(kept[-1], option):
            kept.pop()
        kept.append(option)
    return tuple(kept)


def worth(cheap: Option, near: Option) -> float:
    """Error saved per time spent, going from one option to the next."""
    return (cheap.error - near.error) / max(near.cost - cheap.cost, 1e-12)


def steps(options: Sequence[Option]) -> list[tuple[Option, Option]]:
    """Neighbours, cheapest first."""
    return list(pairwise(options))
