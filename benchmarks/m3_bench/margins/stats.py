"""From scores of positives and negatives to figures. Pure functions; the report calls them too.

A query without negatives has no margin: it is passed over.
"""

from collections.abc import Callable, Sequence
from statistics import fmean

import numpy as np

from m3_bench.documents import PairScoresOf
from m3_bench.retrieval.stats import Difference, is_fp32, paired_difference

Figure = Callable[[PairScoresOf], tuple[float, ...]]
"""One value for each query that has negatives."""


def best_positives(scores: PairScoresOf) -> tuple[float, ...]:
    """The best positive's score, of each query that has negatives."""
    return tuple(max(positives) for positives, _ in _with_negatives(scores))


def best_negatives(scores: PairScoresOf) -> tuple[float, ...]:
    """The best negative's score, of each query that has negatives."""
    return tuple(max(negatives) for _, negatives in _with_negatives(scores))


def margins(scores: PairScoresOf) -> tuple[float, ...]:
    """Best positive less best negative, of each query that has negatives."""
    return tuple(max(positives) - max(negatives) for positives, negatives in _with_negatives(scores))


def pair_accuracies(scores: PairScoresOf) -> tuple[float, ...]:
    """Share of (positive, negative) pairs in the right order, of each query that has negatives; a tie is half right."""
    return tuple(_share_in_order(positives, negatives) for positives, negatives in _with_negatives(scores))


def mean(values: Sequence[float]) -> float | None:
    """The mean over queries; None of none."""
    return fmean(values) if values else None


def loss(scores: Sequence[PairScoresOf], one: PairScoresOf, figure: Figure) -> Difference | None:
    """What an INT8 variant loses of a figure against its bundle's FP32 variant, same method; above 0 is worse.

    Args:
        scores: all of a document.
        one: one of them.
        figure: `margins` or `pair_accuracies`.

    Returns:
        None for the FP32 variant itself, where it was not measured, and where no query has negatives.
    """
    same = (other for other in scores if (other.bundle, other.method) == (one.bundle, one.method))
    reference = next((other for other in same if is_fp32(other.variant)), None)
    if reference is None or is_fp32(one.variant) or not figure(one):
        return None
    return paired_difference(figure(reference), figure(one))


def gain(scores: Sequence[PairScoresOf], one: PairScoresOf, figure: Figure) -> Difference | None:
    """What a bundle gains of a figure over the document's first bundle, same variant and method; above 0 is better.

    Returns:
        None for the first bundle itself, where that has no such variant or method, and where no query has negatives.
    """
    first = scores[0].bundle
    same = (first, one.variant, one.method)
    before = next((other for other in scores if (other.bundle, other.variant, other.method) == same), None)
    if before is None or one.bundle == first or not figure(one):
        return None
    return paired_difference(figure(one), figure(before))


def _with_negatives(scores: PairScoresOf) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    pairs = zip(scores.positives, scores.negatives, strict=True)
    return [(positives, negatives) for positives, negatives in pairs if negatives]


def _share_in_order(positives: Sequence[float], negatives: Sequence[float]) -> float:
    gaps = np.subtract.outer(positives, negatives)
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())
