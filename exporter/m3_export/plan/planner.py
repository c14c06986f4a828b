"""From calibration texts to a plan: hear → options → sensitivity → path → the fastest plan within the budget."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from m3_export import calibration
from m3_export.budget import Budget
from m3_export.model import M3Model
from m3_export.plan import sensitivity
from m3_export.plan.costs import Costs
from m3_export.plan.forms import Form, Heard
from m3_export.plan.hearing import hear
from m3_export.plan.options import Option, find_options
from m3_export.plan.plan import Plan, Precision, Projection, projections
from m3_export.plan.search import Path, Search, Tried
from m3_export.plan.simulate import Exact, Losses, Subject
from m3_export.progress import Progress

Ids = NDArray[np.int32]
# What of the budget a plan may use up on the tuning texts. The probe texts are others, and more: where they show a
# plan to be over, the next one has to leave more room.
MARGINS = (0.85, 0.6, 0.4, 0.25)
SENSITIVITY_TEXTS, SENSITIVITY_TOKENS = 16, 48
TUNING_TOKENS = 96


@dataclass(frozen=True)
class Texts:
    """The calibration texts as ids: ranges and means are measured on one part, plans are compared on the other."""

    ranges: tuple[Ids, ...]
    tuning: tuple[Ids, ...]

    @classmethod
    def split(cls, ids: Sequence[Ids]) -> "Texts":
        """Every fifth text is for tuning; of a single text both parts are made."""
        tuning = tuple(ids[::5])
        return cls(tuple(row for i, row in enumerate(ids) if i % 5) or tuning, tuning)


class Calibrated:
    """What is measured once for all engines, each part when it is first asked for."""

    def __init__(self, model: M3Model, texts: Texts, progress: Progress) -> None:
        self.model, self._texts, self._progress = model, texts, progress
        self._damage: Mapping[Projection, float] | None = None

    @cached_property
    def statistics(self) -> calibration.Statistics:
        """Means and loud neurons."""
        return calibration.measure(self.model, self._texts.ranges, lambda rows: self._progress.bar(rows, "calibration"))

    def subject(self, group: int) -> Subject:
        """The model as an engine's planner sees it."""
        return Subject(self.model, self.statistics, self._heard, group)

    @cached_property
    def _heard(self) -> Mapping[Projection, Heard]:
        places, statistics, texts = projections(len(self.model.layers)), self.statistics, self._texts.ranges
        with self._progress.step(f"  Hearing {len(places)} projections on {len(texts)} calibration texts"):
            return hear(self.model, statistics, places, texts, lambda rows: self._progress.bar(rows, "ranges"))

    @cached_property
    def tuning(self) -> Exact:
        """The exact outputs of the tuning texts."""
        with self._progress.step(f"  Exact outputs of {len(self._texts.tuning)} tuning texts"):
            return Exact(self.model, [_cut(row, TUNING_TOKENS) for row in self._texts.tuning])

    @cached_property
    def sensitivity(self) -> Exact:
        """The exact outputs of fewer and shorter ones, for what is run once per projection."""
        return Exact(self.model, [_cut(row, SENSITIVITY_TOKENS) for row in self._texts.tuning[:SENSITIVITY_TEXTS]])

    def damage(
        self, subject: Subject, options: Mapping[Projection, Sequence[Option]], limits: Losses
    ) -> Mapping[Projection, float]:
        """Damage per local error of each projection: the model's, so measured once, with the first engine's options."""
        if self._damage is None:
            track, exact = partial(self._progress.bar, title="sensitivity", unit="projection"), self.sensitivity
            with self._progress.step(f"  What each of {len(options)} projections does to the vectors"):
                self._damage = sensitivity.measure(subject, exact, options, limits, track)
        return self._damage


@dataclass(frozen=True)
class Planned:
    """A plan and where it came from: what else was tried, and the costs it was chosen by; neither for a given plan."""

    plan: Plan
    cost: float | None
    tried: tuple[Tried, ...]
    costs: Costs | None


def plans(calibrated: Calibrated, costs: Costs, group: int, budget: Budget, progress: Progress) -> Iterator[Planned]:
    """Yield plans, each nearer to exact than the one before, until there is nothing nearer.

    The first is the fastest that holds the budget on the tuning texts; the caller measures what is written of it on
    texts that no plan has seen, and asks for the next one if it does not hold.
    """
    subject, limits = calibrated.subject(group), limits_of(budget)
    with progress.step("  Trying ways to quantize each projection"):
        options = find_options(subject, costs, partial(progress.bar, title="options", unit="projection"))

    def simulate(plan: Plan) -> Losses:
        exact = calibrated.tuning
        with progress.step(f"  Simulating {_counts(plan)}"):
            return losses_of(subject, plan, exact)

    path = Path(options, lambda: calibrated.damage(subject, options, limits), group)
    search = Search(path, simulate, limits)
    place = -1
    for margin in MARGINS:
        found = search.fastest(margin, beyond=place)
        progress.say(f"  Plan: {_counts(found.plan)}, {found.losses.over(limits):.0%} of the budget in simulation")
        yield Planned(found.plan, found.cost, search.tried, costs)
        place = found.place
        if search.is_last(found):
            return


def losses_of(subject: Subject, plan: Plan, exact: Exact) -> Losses:
    """What a plan loses on some texts, simulated."""
    with subject.with_plan(plan):
        return exact.losses()


def forms_of(subject: Subject, plan: Plan) -> Mapping[Projection, Form]:
    """The forms of all projections that are not float."""
    return {
        place: subject.form(place, choice)
        for place, choice in plan.choices.items()
        if choice.precision is not Precision.FLOAT
    }


def limits_of(budget: Budget) -> Losses:
    """The budget as the most that may be lost."""
    return Losses(
        dense_mean=1 - budget.dense_mean,
        dense_min=1 - budget.dense_min,
        colbert_p5=1 - budget.colbert_p5,
        sparse_jaccard=1 - budget.sparse_jaccard,
    )


def _cut(row: Ids, tokens: int) -> Ids:
    """A text's first tokens and its last one, </s>."""
    return row if len(row) <= tokens else np.append(row[: tokens - 1], row[-1])


def _counts(plan: Plan) -> str:
    kinds = [choice.precision for choice in plan.choices.values()]
    return ", ".join(f"{kinds.count(p)} {p}" for p in Precision if p in kinds)
