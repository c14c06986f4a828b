"""The fastest plan within a budget: a path from the fastest to the nearest, and the first place on it that holds.

The path takes one step at a time: of all projections the one whose next option saves most damage per time. So every
place on it is, as far as damages add up, the best plan for its time. Where the budget begins to hold is found by
bisection, with the whole plan simulated at each try.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from m3_export.plan.options import Option, steps, worth
from m3_export.plan.plan import Plan, Projection
from m3_export.plan.simulate import Losses

CLOSE_ENOUGH = 0.01  # of the float encoder's time: costs are measured no better, and a try takes a minute


@dataclass(frozen=True)
class Tried:
    """A place on the path that was simulated: its plan, its cost, and its losses."""

    place: int
    plan: Plan
    cost: float
    losses: Losses


class Path:
    """Plans in order of time; `at(0)` is the fastest, `at(len(path) - 1)` the nearest to exact."""

    def __init__(
        self,
        options: Mapping[Projection, Sequence[Option]],
        weigh: Callable[[], Mapping[Projection, float]],
        group: int,
    ) -> None:
        """Nothing is weighed yet: often the fastest plan will do.

        Args:
            options: of every projection, cheapest first.
            weigh: measures each projection's damage per local error; called once, if a second plan is asked for.
            group: of dynamic ranges.
        """
        self._options, self._weigh, self._group = options, weigh, group

    @cached_property
    def _moves(self) -> list[tuple[Projection, Option]]:
        damage = self._weigh()
        moves = [
            (damage[place] * worth(cheap, near), place, near)
            for place, found in self._options.items()
            for cheap, near in steps(found)
        ]
        # a stable sort keeps the steps of one projection in order: `hull` made each worth less than the one before
        return [(place, near) for _, place, near in sorted(moves, key=lambda move: -move[0])]

    def __len__(self) -> int:
        return 1 + sum(len(found) - 1 for found in self._options.values())

    def at(self, place: int) -> tuple[Plan, float]:
        """The plan after so many steps, and its cost."""
        chosen = {projection: found[0] for projection, found in self._options.items()}
        if place:
            chosen.update(self._moves[:place])
        plan = Plan({projection: option.choice for projection, option in chosen.items()}, self._group)
        return plan, sum(option.cost for option in chosen.values())


class Search:
    """Bisection on a path; what was simulated once is remembered, for the next margin and for the picture."""

    def __init__(self, path: Path, simulate: Callable[[Plan], Losses], limits: Losses) -> None:
        self._path, self._simulate, self._limits = path, simulate, limits
        self._tried: dict[int, Tried] = {}

    @property
    def tried(self) -> tuple[Tried, ...]:
        """Every plan that was simulated, fastest first."""
        return tuple(self._tried[place] for place in sorted(self._tried))

    def fastest(self, margin: float, beyond: int = -1) -> Tried:
        """The fastest plan whose losses are at most `margin` of their limits, or one that takes hardly longer.

        The nearest one if none holds.

        Args:
            margin: 1 is the budget itself; less leaves room for texts that were not simulated.
            beyond: only places after this one.
        """
        low, high = beyond + 1, len(self._path) - 1
        low = min(low, high)
        if low == 0 and self._try(0).losses.over(self._limits) <= margin:
            return self._try(0)  # before anything is weighed
        while low < high and self._path.at(high)[1] - self._path.at(low)[1] > CLOSE_ENOUGH:
            middle = (low + high) // 2
            if self._try(middle).losses.over(self._limits) <= margin:
                high = middle
            else:
                low = middle + 1
        return self._try(high)

    def is_last(self, tried: Tried) -> bool:
        """Whether there is nothing nearer to exact."""
        return tried.place == len(self._path) - 1

    def _try(self, place: int) -> Tried:
        if place not in self._tried:
            plan, cost = self._path.at(place)
            self._tried[place] = Tried(place, plan, cost, self._simulate(plan))
        return self._tried[place]
