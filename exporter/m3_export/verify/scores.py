"""Parity of a reranker: scores of pairs, and the order in which they put each query's passages. Pure numpy."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_export.arrays import Float32Array
from m3_export.plan.losses import PairLosses
from m3_export.verify.comparison import ModelOutputs, rounded
from m3_export.verify.parity import NOISE_PERCENTILE
from m3_runtime.bundle.manifest import LEAST_SPREAD, ScoreParity
from m3_runtime.encode.encoding import Encoding

_BEST = 10
_FEWEST = 16  # pairs that a correction is fitted to


@dataclass(frozen=True)
class ScoreCorrection:
    """What undoes the change that INT8 makes to all scores alike: `scale` times a score plus `shift`."""

    scale: float
    shift: float

    @classmethod
    def between(cls, expected: Float32Array, got: Float32Array) -> "ScoreCorrection":
        """The line from (N,) scores to the expected ones with the smallest squared differences, to 4 digits.

        A few pairs say nothing of others, and a line that would turn the order round says nothing of INT8: neither
        gives a correction.

        >>> got = np.arange(16, dtype=np.float32)
        >>> ScoreCorrection.between(2 * got + 1, got)
        ScoreCorrection(scale=2.0, shift=1.0)
        >>> few, reverse, same = (got[:2] + 1, got[:2]), (-got, got), (np.zeros_like(got), got)
        >>> [ScoreCorrection.between(*each) == NO_CORRECTION for each in (few, reverse, same)]
        [True, True, True]
        """
        x, y = got.astype(np.float64), expected.astype(np.float64)
        if len(x) < _FEWEST or not np.isfinite(x).all() or min(x.std(), y.std()) <= LEAST_SPREAD:
            return NO_CORRECTION
        moved = x - x.mean()
        scale = float(f"{moved @ y / (moved @ moved):.4g}")  # more digits are noise of one machine
        return cls(scale, float(f"{y.mean() - scale * x.mean():.4g}")) if scale > 0 else NO_CORRECTION

    def __str__(self) -> str:
        """As the manifest says it."""
        return f"× {self.scale:g} {self.shift:+g}"

    def of(self, scores: Float32Array) -> Float32Array:
        """(N,) → (N,)."""
        return (self.scale * scores + self.shift).astype(np.float32)


NO_CORRECTION = ScoreCorrection(1.0, 0.0)


@dataclass(frozen=True)
class Scores(ModelOutputs):
    """What a reranker gives for N pairs."""

    values: Float32Array  # (N,) scores before the sigmoid
    query_of: NDArray[np.int64]  # (N,) which query a pair is of; its passages are ordered by their scores
    spread: float  # what a difference is measured in: the standard deviation of the reference's scores of natural pairs

    @classmethod
    def of_reference(cls, values: Float32Array, query_of: NDArray[np.int64], spread: float | None = None) -> "Scores":
        """The reference's scores; without a spread they are those of natural pairs, which give it."""
        own = max(float(values.astype(np.float64).std()), LEAST_SPREAD)
        return cls(values, query_of, own if spread is None else spread)

    @property
    def pooled(self) -> Float32Array:
        """See `ModelOutputs`."""
        return self.values

    def pooled_similarities(self, expected: Float32Array, got: Float32Array) -> NDArray[np.float64]:
        """See `ModelOutputs`."""
        return 1 - self._squares(expected, got)

    def like(self, encoding: Encoding) -> "Scores":
        """See `ModelOutputs`."""
        assert encoding.scores is not None
        return replace(self, values=encoding.scores)

    def corrected(self, correction: ScoreCorrection) -> "Scores":
        """The same pairs' scores after a correction."""
        return replace(self, values=correction.of(self.values))

    def losses(self, variant: "Scores", *, is_degenerate: bool) -> PairLosses:
        """See `ModelOutputs`."""
        return PairLosses(
            squares=self._squares(self.values, variant.values),
            is_degenerate=np.full(len(self.values), is_degenerate),
            top1=1 - score_parity(self, variant).top1_same_near_ties_aside,
        )

    def parity(self, variant: "Scores") -> Mapping[str, Any]:
        """See `ModelOutputs`."""
        return {"dense": None, "sparse": None, "colbert": None, "score": score_parity(self, variant)}

    def by_query(self, other: "Scores") -> Iterator[tuple[Float32Array, Float32Array]]:
        """The two scores of each query's passages, of queries with two passages or more."""
        for query in np.unique(self.query_of):
            places = np.flatnonzero(self.query_of == query)
            if places.size > 1:
                yield self.values[places], other.values[places]

    def _squares(self, expected: Float32Array, got: Float32Array) -> NDArray[np.float64]:
        """(N,) (difference ÷ spread)²."""
        found: NDArray[np.float64] = ((got.astype(np.float64) - expected.astype(np.float64)) / self.spread) ** 2
        return found


def score_parity(reference: Scores, variant: Scores) -> ScoreParity:
    """Differences of the scores, and how far each query's passages keep their order."""
    moves = np.abs(variant.values.astype(np.float64) - reference.values.astype(np.float64))
    noise = 2 * float(np.percentile(moves, NOISE_PERCENTILE))
    orders = list(reference.by_query(variant))
    same = np.array([expected.argmax() == got.argmax() for expected, got in orders] or [True])
    near_tie = np.array([_best_gap(expected) < noise for expected, _ in orders] or [False])
    return ScoreParity(
        difference_mean=rounded(moves.mean()),
        difference_p99=rounded(np.percentile(moves, 99)),
        difference_max=rounded(moves.max()),
        spread=rounded(reference.spread),
        kendall_tau=rounded(np.mean([kendall_tau(expected, got) for expected, got in orders] or [1.0])),
        top1_same=rounded(same.mean()),
        top1_same_near_ties_aside=rounded((same | near_tie).mean()),
        top10_overlap=rounded(np.mean([top_overlap(expected, got) for expected, got in orders] or [1.0])),
    )


def kendall_tau(a: Float32Array, b: Float32Array) -> float:
    """Kendall's tau-b of two (P,) scores of the same passages: 1 the same order, -1 the reverse.

    Where all scores of one are equal there is no order to keep or lose: 1 if those of the other are too, else 0.

    >>> kendall_tau(np.float32([3, 2, 1]), np.float32([9, 7, 8]))
    0.3333333333333333
    """
    first, second = (np.sign(np.subtract.outer(x, x)) for x in (a, b))
    pairs = np.sqrt(float((first != 0).sum()) * float((second != 0).sum()))
    if not pairs:
        return float(first.any() == second.any())
    return float((first * second).sum() / pairs)


def top_overlap(a: Float32Array, b: Float32Array, most: int = _BEST) -> float:
    """Share of the best passages, ten at most, that two scorings have in common.

    >>> top_overlap(np.float32([3, 2, 1]), np.float32([9, 7, 8]), most=2)
    0.5
    """
    best = [set(np.argsort(-x, kind="stable")[:most].tolist()) for x in (a, b)]
    return len(best[0] & best[1]) / len(best[0])


def _best_gap(scores: Float32Array) -> float:
    second, first = np.partition(scores, -2)[-2:]
    return float(first - second)
