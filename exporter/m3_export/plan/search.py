"""The fastest plan within a budget: whole-model candidates first, repairs of what is just over, the engine decides.

Candidates wait in the order of their predicted time. The fastest is written and measured; if it holds the budget, only
candidates that could be faster are still tried. If it is over, its repair joins the queue: the same plan with those
projections one precision up that save most excess per time. So the search ends where nothing faster remains that could
hold.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count

import numpy as np

from m3_export.plan.losses import Losses, TextLosses, sums
from m3_export.plan.plan import FLOAT, Precision, PrecisionPlan, Projection, Scheme

AS_FAST = 1.03  # predictions within this of each other are measured, not trusted
MOST_TRIALS = 16


@dataclass(frozen=True)
class Candidate:
    """A plan under consideration: what it is called, and its predicted time in parts of a reference."""

    plan: PrecisionPlan
    name: str
    time: float


@dataclass(frozen=True)
class Trial:
    """A candidate as the engine measured it: its figures, and what a bootstrap expects of other texts."""

    candidate: Candidate
    measured: Losses
    expected: Losses

    def holds(self, limits: Losses) -> bool:
        """Whether other texts than the measured ones are expected within the limits, too."""
        return self.expected.worst(limits) <= 1


def search(
    candidates: Sequence[Candidate],
    limits: Losses,
    evaluate: Callable[[Candidate], Trial],
    repair: Callable[[Trial], Candidate | None],
    faster: Callable[[Trial, Trial], Trial],
) -> tuple[Trial, ...]:
    """Try candidates until none is left that could be faster than the best that holds.

    Args:
        candidates: whole-model candidates.
        limits: the budget.
        evaluate: writes and measures a candidate.
        repair: a slower candidate nearer to exact, or None if there is none.
        faster: measures the times of two trials that hold, in turns; the faster of them.

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
    while queue and len(trials) < MOST_TRIALS:
        time, _, following = heapq.heappop(queue)
        if best is not None and time > best.candidate.time * AS_FAST:
            break
        if isinstance(following, Trial):
            add(repair(following))
            continue
        trial = evaluate(following)
        trials.append(trial)
        if trial.holds(limits):
            best = trial if best is None else faster(best, trial)
        else:  # its repair takes longer than it did, and is worked out only when nothing else could be as fast
            heapq.heappush(queue, (following.time * AS_FAST, next(order), trial))
    chosen = best or min(trials, key=lambda trial: trial.expected.worst(limits))
    return (chosen, *(trial for trial in trials if trial is not chosen))


class Repair:
    """Predicts what a plan would lose from what its projections lose one at a time, and plans from that.

    Errors of projections are nearly independent, so losses add up; where that is wrong for a model, it is about as wrong
    for the repaired plan as for the failed one, whose figures the engine measured. So predictions are ratios to those.
    """

    def __init__(
        self,
        ladder: Mapping[Projection, Sequence[Scheme]],
        losses: Callable[[Projection, Scheme], TextLosses],
        always: TextLosses,
        time: Callable[[PrecisionPlan], float],
        limits: Losses,
    ) -> None:
        """Nothing is computed yet.

        Args:
            ladder: the schemes of each projection, from fastest to exact; the last is float.
            losses: of one quantized projection alone.
            always: losses that no scheme changes: of the embedding.
            time: predicted, of a plan.
            limits: the budget.
        """
        self._ladder, self._losses, self._always, self._time = ladder, losses, always, time
        self._limits = limits
        self._nothing = sums([always])
        self._nothing = replace(
            self._nothing, dense=0 * always.dense, sparse=0 * always.sparse, colbert=0 * always.colbert
        )

    def __call__(self, trial: Trial) -> Candidate | None:
        """A plan that is predicted to hold; None if not even float everywhere is."""
        plan = trial.candidate.plan
        schemes = dict(plan.schemes)
        of_failed = self._figures(schemes)
        measured = np.array([getattr(trial.expected, f.name) for f in fields(Losses)])
        scale = measured / np.maximum(of_failed, 1e-12)

        def excess(parts: np.ndarray) -> float:
            return float(np.maximum(parts - 1, 0).sum())

        def in_parts(candidate: Mapping[Projection, Scheme]) -> np.ndarray:
            limits = np.array([max(getattr(self._limits, f.name), 1e-12) for f in fields(Losses)])
            return self._figures(candidate) * scale / limits

        parts, climbed = in_parts(schemes), list[tuple[float, Projection, Scheme]]()
        seconds = self._time(plan)
        while excess(parts) > 0:
            steps = []
            for projection, scheme in schemes.items():
                if (better := self._next(projection, scheme)) is None:
                    continue
                trial_schemes = {**schemes, projection: better}
                trial_parts = in_parts(trial_schemes)
                dearer = self._time(replace(plan, schemes=trial_schemes)) - seconds
                gain = excess(parts) - excess(trial_parts)
                steps.append((gain / max(dearer, 1e-6), dearer, projection, better))
            steps = [step for step in steps if step[0] > 0]
            if not steps:
                return None
            _, dearer, projection, better = max(steps, key=lambda step: step[0])
            climbed.append((dearer, projection, schemes[projection]))
            schemes[projection] = better
            parts, seconds = in_parts(schemes), seconds + dearer
        for _, projection, before in sorted(climbed, key=lambda step: -step[0]):
            back = {**schemes, projection: before}
            if excess(in_parts(back)) == 0:
                schemes = back
        repaired = replace(plan, schemes=schemes)
        if repaired == plan:
            return None
        return Candidate(repaired, f"{trial.candidate.name.removesuffix(', repaired')}, repaired", self._time(repaired))

    def _next(self, projection: Projection, scheme: Scheme) -> Scheme | None:
        if scheme.precision is Precision.FLOAT:
            return None
        ladder = self._ladder[projection]
        precisions = [step.precision for step in ladder]
        place = precisions.index(scheme.precision) if scheme.precision in precisions else -1
        return ladder[place + 1] if place + 1 < len(ladder) else FLOAT

    def _figures(self, schemes: Mapping[Projection, Scheme]) -> np.ndarray:
        """(5,) predicted figures, before scaling. Degenerate texts: their mean loss, whose share over a limit it drives."""
        losses = sums(
            [self._always]
            + [self._losses(p, scheme) for p, scheme in schemes.items() if scheme.precision is not Precision.FLOAT]
        )
        figures = losses.figures(self._limits.dense_min)
        degenerate = losses.dense[losses.is_degenerate]
        share = float(np.minimum(degenerate, self._limits.dense_min).mean()) if degenerate.size else 0.0
        return np.array([figures.dense_mean, figures.dense_min, figures.colbert_p5, figures.sparse_jaccard, share])
