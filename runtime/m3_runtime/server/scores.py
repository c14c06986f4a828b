"""Scores of one query and many passages, from their encodings."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.scoring import FusionWeights, PairScores, colbert_score


class ScoreMode(StrEnum):
    """What passages are ranked by."""

    DENSE = "dense"
    SPARSE = "sparse"
    COLBERT = "colbert"
    HYBRID = "hybrid"

    @property
    def heads(self) -> tuple[Head, ...]:
        """Heads that it takes."""
        return tuple(Head) if self is ScoreMode.HYBRID else (Head(self.value),)


@dataclass(frozen=True)
class QueryScores:
    """(P,) scores per head; None for a head that was not asked for."""

    dense: NDArray[np.float32] | None
    sparse: NDArray[np.float32] | None
    colbert: NDArray[np.float32] | None

    def of(self, mode: ScoreMode, weights: FusionWeights) -> list[float]:
        """The scores of one mode."""
        if mode is ScoreMode.HYBRID:
            assert self.dense is not None and self.sparse is not None and self.colbert is not None
            return PairScores(self.dense, self.sparse, self.colbert).combined(weights)["colbert+sparse+dense"]
        found: NDArray[np.float32] | None = getattr(self, mode.value)
        assert found is not None
        return found.tolist()


def score(encoding: Encoding) -> QueryScores:
    """Scores of text 0, the query, and all other texts, the P passages."""
    dense, sparse, colbert = encoding.dense_vecs, encoding.sparse, encoding.colbert_vecs
    passages = range(1, len(encoding.token_counts))
    return QueryScores(
        dense=None if dense is None else np.einsum("ph,h->p", dense[1:], dense[0]),
        sparse=None if sparse is None else np.array([_dot(sparse.row(0), sparse.row(i)) for i in passages], np.float32),
        colbert=None
        if colbert is None
        else np.array([colbert_score(colbert[0], colbert[i]) for i in passages], np.float32),
    )


def _dot(
    a: tuple[NDArray[np.int64], NDArray[np.float32]], b: tuple[NDArray[np.int64], NDArray[np.float32]]
) -> np.float32:
    _, in_a, in_b = np.intersect1d(a[0], b[0], assume_unique=True, return_indices=True)
    return np.float32(a[1][in_a] @ b[1][in_b])
