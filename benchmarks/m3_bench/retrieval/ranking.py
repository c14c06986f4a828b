"""The best of many scores, the same ones every time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Places = NDArray[np.int64]
Ranking = Sequence[Places]
"""Per query, places of documents, best first."""


def best(scores: NDArray[Any], most: int) -> Places:
    """Places of the highest scores, best first; of equal scores the earlier place.

    >>> best(np.array([0.5, 2.0, 0.5, 0.7]), 3).tolist()
    [1, 3, 0]
    """
    if most < scores.size:
        threshold = np.partition(scores, scores.size - most)[scores.size - most]
        picked = np.flatnonzero(scores >= threshold)
    else:
        picked = np.arange(scores.size)
    order = np.argsort(-scores[picked], kind="stable")
    return picked[order][:most].astype(np.int64)


def best_above_zero(scores: NDArray[Any], most: int) -> Places:
    """As `best`, of scores above 0: what an inverted index finds at all."""
    found = best(scores, most)
    return found[scores[found] > 0]
