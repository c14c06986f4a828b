"""The fastest plan within a budget: whole-model candidates first, repairs of what is just over, the engine decides.

Candidates wait in the order of their predicted time. The fastest is written and measured; if it holds the budget, only
candidates that could be faster are still tried. If it is over, its repair joins the queue: the same plan with those
projections in a higher precision that save most excess per time. So the search ends where nothing faster remains that
could hold.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import reduce
from itertools import count

import numpy as np

from m3_export.plan.losses import Figures, Floats, LossesByText
from m3_export.plan.plan import Precision, PrecisionPlan, Projection, Scheme

AS_FAST = 1.03  # predictions within this of each other are measured, not trusted
NEARLY_AS_FAST = 1.08  # whole-model candidates within this: of those that were tried, times are compared on the engine
SAME_TIME = 1.01  # what differs by less is as fast
MOST_DEGENERATE = 2.0  # times the limit: repair at most halves the mean loss of degenerate texts at once
RISE = 1e-6  # of a figure by the sum, where two plans measured the same: less is always a little better
BEYOND = 1e3  # times the largest sum of losses of a measured plan: as far as figures are extrapolated
WORTH_A_TRIAL = 0.99  # of the best time: what a repair has to promise once there is a plan that holds
MOST_TRIALS = 12  # a trial in BGE-M3's geometry takes a minute


@dataclass(frozen=True)
class Candidate:
    """A plan under consideration.

    Attributes:
        plan: the schemes.
        name: what it is called.
        time: predicted, in parts of a reference.
        start: the whole-model plan that was repaired; None for a whole-model candidate.
    """

    plan: PrecisionPlan
    name: str
    time: float
    start: PrecisionPlan | None = None

    @property
    def is_repair(self) -> bool:
        """Whether it is another candidate with some precisions changed."""
        return self.start is not None

    @property
    def origin(self) -> PrecisionPlan:
        """The whole-model plan that it is, or was made from."""
        return self.start or self.plan

    def repaired(self, plan: PrecisionPlan, name: str, time: float) -> "Candidate":
        """Another plan that was made from this one's."""
        return Candidate(plan, name, time, self.origin)


@dataclass(frozen=True)
class Trial:
    """A candidate as the engine measured it: its figures, and what a bootstrap expects of other texts."""

    candidate: Candidate
    measured: Figures
    expected: Figures

    def holds(self, limits: Figures) -> bool:
        """Whether other texts than the measured ones are expected within the limits, too."""
        return self.expected.worst(limits) <= 1


def search(
    candidates: Sequence[Candidate],
    limits: Figures,
    evaluate: Callable[[Candidate], Trial],
    repair: Callable[[Trial, Set[PrecisionPlan], Sequence[Trial]], Candidate | None],
    faster: Callable[[Trial, Trial], Trial],
    most_trials: int = MOST_TRIALS,
) -> tuple[Trial, ...]:
    """Try candidates until none is left that could be faster than the best that holds.

    Args:
        candidates: whole-model candidates.
        limits: the budget.
        evaluate: writes and measures a candidate.
        repair: the fastest plan that should hold, by what a trial showed, and that is not among those given; or None.
            It also gets all trials so far.
        faster: measures the times of two trials that hold, in turns; the faster of them.
        most_trials: candidates to evaluate at most.

    Returns:
        All trials; the first is the best that holds. Where none holds, the first is the one that is least over.
    """
    order, queue, seen = count(), list[tuple[float, int, Candidate | Trial]](), set[PrecisionPlan]()

    def add(candidate: Candidate | None) -> None:
        if candidate is not None and candidate.plan not in seen:
            seen.add(candidate.plan)
            heapq.heappush(queue, (candidate.time, next(order), candidate))

    for candidate in candidates:
        add(candidate)
    best: Trial | None = None
    trials: list[Trial] = []
    while queue and len(trials) < most_trials:
        time, _, following = heapq.heappop(queue)
        if best is not None and time > best.candidate.time * NEARLY_AS_FAST:
            break
        if isinstance(following, Trial):
            if best is not None and time > best.candidate.time * AS_FAST:
                continue
            if following.candidate.is_repair or not any(_is_better(other, following, limits) for other in trials):
                add(repair(following, seen, trials))
            continue
        if best is not None and following.is_repair and time > best.candidate.time * WORTH_A_TRIAL:
            continue
        trial = evaluate(following)
        trials.append(trial)
        if trial.holds(limits):
            best = trial if best is None else faster(best, trial)
            if following.is_repair:  # it may have been repaired more than needed
                add(repair(best, seen, trials))
        else:  # its repair takes longer than it did, and is worked out only when nothing else could be as fast
            heapq.heappush(queue, (following.time * AS_FAST, next(order), trial))
        if best is not None and following.is_repair and trial is not best:
            add(repair(best, seen, trials))
    if best is None and (slowest := max(candidates, key=lambda candidate: candidate.time)).plan not in {
        trial.candidate.plan for trial in trials
    }:
        trials.append(evaluate(slowest))
    chosen = best or min(trials, key=lambda trial: trial.expected.worst(limits))
    return (chosen, *(trial for trial in trials if trial is not chosen))


def _is_better(one: Trial, than: Trial, limits: Figures) -> bool:
    """Whether a trial is as fast by its prediction, and nearer to the budget."""
    is_as_fast = one.candidate.time <= than.candidate.time * SAME_TIME
    return is_as_fast and one.expected.worst(limits) < than.expected.worst(limits)


class Repair:
    """Predicts what plans lose from what their projections lose one at a time, and finds the fastest that should hold.

    Errors of projections are nearly independent, so losses add up. What the engine makes of such a sum is read off
    between the plans that it has measured, so that a search between one that holds and one that does not closes in.
    """

    def __init__(
        self,
        ladder: Mapping[Projection, Sequence[Scheme]],
        losses: Callable[[Projection, Scheme], LossesByText],
        always: LossesByText,
        time: Callable[[Projection, Scheme], float],
        limits: Figures,
    ) -> None:
        """Nothing is computed yet.

        Args:
            ladder: the schemes of each projection, from fastest to exact; the last is float.
            losses: of one quantized projection alone.
            always: losses that no scheme changes: of the embedding.
            time: what one projection adds to a candidate's time.
            limits: the budget.
        """
        self._ladder, self._losses, self._always, self._time = ladder, losses, always, time
        self._limits = limits

    def __call__(self, trial: Trial, seen: Set[PrecisionPlan], trials: Sequence[Trial] = ()) -> Candidate | None:
        """The fastest plan not seen yet that is predicted to hold; None if there is none.

        Precisions go up where that saves most excess per time; then they go down wherever that is possible, alone or in
        exchange for another projection's going up.

        Args:
            trial: whose plan is repaired.
            seen: plans that were tried.
            trials: all so far; those made from the same plan tell what the engine makes of sums of losses.
        """
        start = trial.candidate.plan
        state = _State(dict(start.schemes), self._sum(start.schemes))
        others = (other for other in trials if other is not trial and self._is_akin(other.candidate, trial.candidate))
        forecast = self._forecast([trial, *others])
        while (excess := self._excess(state.total, forecast)) > 0:
            higher = self._best_move_up(state, excess, forecast)
            if higher is None:
                return None
            state = higher
        state = self._lowered(state, forecast)
        plan = replace(start, schemes=state.schemes)
        if plan in seen:
            nearby = (replace(start, schemes=found.schemes) for found in self._exchanges(state, forecast))
            plan = next((found for found in nearby if found not in seen), start)
        if plan in seen:
            return None
        time = trial.candidate.time + sum(
            self._time(projection, scheme) - self._time(projection, start.schemes[projection])
            for projection, scheme in plan.schemes.items()
        )
        return trial.candidate.repaired(plan, f"{trial.candidate.name.removesuffix(', repaired')}, repaired", time)

    def _is_akin(self, one: Candidate, other: Candidate) -> bool:
        """Whether both were made from the same plan, or one from the other, in precisions whose losses are known."""
        known = all(scheme in self._ladder[projection] for projection, scheme in one.plan.schemes.items())
        return known and one.origin == other.origin

    def _forecast(self, trials: Sequence[Trial]) -> "_Forecast":
        """What the engine found, beside what the sums of the projections' losses say."""
        sums = np.array([self._in_parts(self._sum(trial.candidate.plan.schemes)) for trial in trials])
        figures = np.array([trial.expected.in_parts_of(self._limits) for trial in trials])
        figures[:, -1] = np.minimum(figures[:, -1], MOST_DEGENERATE)
        return _Forecast.between(sums, figures)

    def _best_move_up(self, state: "_State", excess: float, forecast: "_Forecast") -> "_State | None":
        """The one move up that saves most excess per time, or None if none saves any.

        A simulation is needed to know what a move saves, but not what it saves at most: moves are looked at in the
        order of that bound, and only until none left can be better (Minoux's lazy greedy, 1978).
        """
        bounds = [
            ((excess - self._excess(state.total - self._vector(*move.before), forecast)) / max(move.longer, 1e-9), move)
            for move in self._moves(state, up=True)
        ]
        best, most = None, 0.0
        for bound, move in sorted(bounds, key=lambda found: -found[0]):
            if bound <= most:
                break
            moved = self._moved(state, move)
            gain = (excess - self._excess(moved.total, forecast)) / max(move.longer, 1e-9)
            if gain > most:
                best, most = moved, gain
        return best

    def _lowered(self, state: "_State", forecast: "_Forecast") -> "_State":
        """The fastest state that one or two moves at a time lead to, all of them predicted to hold."""
        while (faster := next(self._exchanges(state, forecast, longest=0), None)) is not None:
            state = faster
        return state

    def _exchanges(self, state: "_State", forecast: "_Forecast", longest: float = np.inf) -> Iterator["_State"]:
        """What is predicted to hold with one projection down, up, or one down and one up: the fastest first.

        Only what takes less than `longest` more than the state does.
        """
        downs, ups = list(self._moves(state, up=False)), list(self._moves(state, up=True))
        exchanges = [(down, up) for down in downs for up in ups if down.projection != up.projection]
        found = [(sum(move.longer for move in moves), moves) for moves in (*zip(downs), *zip(ups), *exchanges)]
        for _, moves in sorted((f for f in found if f[0] < longest), key=lambda f: f[0]):
            least = state.total - np.sum([self._vector(*move.before) for move in moves], axis=0)
            if self._excess(least, forecast) == 0:  # else it cannot hold, whatever the new precisions lose
                moved = reduce(self._moved, moves, state)
                if self._excess(moved.total, forecast) == 0:
                    yield moved

    def _moves(self, state: "_State", *, up: bool) -> Iterator["_Move"]:
        """Every projection to each higher, or each lower, precision."""
        for projection, scheme in state.schemes.items():
            ladder = self._ladder[projection]
            place = [step.precision for step in ladder].index(scheme.precision)
            for to in ladder[place + 1 :] if up else ladder[:place]:
                longer = self._time(projection, to) - self._time(projection, scheme)
                yield _Move(projection, scheme, to, longer)

    def _moved(self, state: "_State", move: "_Move") -> "_State":
        total = state.total - self._vector(*move.before) + self._vector(move.projection, move.to)
        return _State({**state.schemes, move.projection: move.to}, total)

    def _sum(self, schemes: Mapping[Projection, Scheme]) -> Floats:
        vectors = [self._vector(projection, scheme) for projection, scheme in schemes.items()]
        return np.sum([self._always.additive(), *vectors], axis=0)

    def _vector(self, projection: Projection, scheme: Scheme) -> Floats:
        if scheme.precision is Precision.FLOAT:
            return np.zeros_like(self._always.additive())
        return self._losses(projection, scheme).additive()

    def _excess(self, total: Floats, forecast: "_Forecast") -> float:
        """By how much all figures together are over, in parts of their limits."""
        return float(np.maximum(forecast.of(self._in_parts(total)) - 1, 0).sum())

    def _in_parts(self, total: Floats) -> Floats:
        """(F,) predicted figures in parts of their limits, before scaling."""
        return self._always.predicted(total, self._limits.worst_text).in_parts_of(self._limits)


@dataclass(frozen=True)
class _Forecast:
    """Figures by the sum of a plan's losses: from none, through the measured plans, in proportion beyond them.

    Attributes:
        sums: F arrays, ascending, in parts of the limits.
        figures: F arrays of the same lengths, ascending.
    """

    sums: Sequence[Floats]
    figures: Sequence[Floats]

    @classmethod
    def between(cls, sums: Floats, figures: Floats) -> "_Forecast":
        """(P, F) sums and figures of measured plans; where a plan of a smaller sum lost more, its figure counts."""
        order = np.argsort(sums, axis=0)
        ends = np.maximum(np.take_along_axis(sums, order, axis=0), 1e-12)
        reached = np.maximum.accumulate(np.take_along_axis(figures, order, axis=0)) + RISE * ends
        none = np.zeros_like(ends[:1])
        return cls(
            tuple(np.concatenate([none, ends, ends[-1:] * BEYOND]).T),
            tuple(np.concatenate([none, reached, reached[-1:] * BEYOND]).T),
        )

    def of(self, in_parts: Floats) -> Floats:
        """(F,) from the sum of a plan's losses in parts of the limits; never less for larger sums."""
        rows = zip(in_parts, self.sums, self.figures, strict=True)
        return np.array([np.interp(at, sums, figures) for at, sums, figures in rows])


@dataclass(frozen=True)
class _State:
    """Schemes, and the sum of their additive losses."""

    schemes: Mapping[Projection, Scheme]
    total: Floats


@dataclass(frozen=True)
class _Move:
    """One projection from one scheme to another, and how much longer that takes."""

    projection: Projection
    scheme: Scheme
    to: Scheme
    longer: float

    @property
    def before(self) -> tuple[Projection, Scheme]:
        return self.projection, self.scheme
