"""How much the vectors at the end suffer from an error in one projection: measured, one projection at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from m3_export.plan.options import Option
from m3_export.plan.plan import Projection
from m3_export.plan.simulate import Exact, Losses, Subject

Damage = tuple[float, ...]  # a loss in parts of its limit, per figure


def measure(
    subject: Subject,
    exact: Exact,
    options: Mapping[Projection, Sequence[Option]],
    limits: Losses,
    track: Callable[[Sequence[Projection]], Iterable[Projection]],
) -> Mapping[Projection, float]:
    """Damage per local error of every projection, summed over the figures of the budget.

    Each projection alone computes what its cheapest option would, the model runs from its layer to the end, and the
    losses are compared with the limits. Small errors add up, so the damage of another option is in proportion to its
    error.

    Args:
        subject: what is planned.
        exact: the texts to run.
        options: of every projection, cheapest first.
        limits: the budget's.
        track: wraps the iteration, for a progress bar.
    """
    found = {}
    for place in track(list(options)):
        cheapest = options[place][0]
        with subject.with_choice(place, cheapest.choice):
            losses = exact.losses(first_layer=place.layer)
        found[place] = sum(losses.in_parts_of(limits)) / max(cheapest.error, 1e-12)
    return found
