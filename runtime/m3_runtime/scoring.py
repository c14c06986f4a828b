"""Scores between encoded texts. Pure numpy, FlagEmbedding's formulas.

One difference, on purpose: FlagEmbedding's `compute_score` compares each query token with the padding of the
passages in its batch as well, which are zero vectors, so a best similarity below 0 becomes 0 there whenever a
passage happens to be padded. Here padding is never seen, so a score does not depend on its neighbours in a
batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from m3_runtime.errors import InputError

LexicalWeights = Mapping[str, float]


@dataclass(frozen=True)
class FusionWeights:
    """How much each head counts in a combined score."""

    dense: float = 1.0
    sparse: float = 1.0
    colbert: float = 1.0

    @classmethod
    def from_sequence(cls, weights: Sequence[float] | None) -> "FusionWeights":
        """From [dense, sparse, colbert], FlagEmbedding's order; None is [1, 1, 1].

        Raises:
            InputError: not three finite numbers, or their sum is 0.
        """
        if weights is None:
            return cls()
        try:
            values = [float(weight) for weight in weights]
        except (TypeError, ValueError) as error:
            raise InputError(f"weights must be three numbers [dense, sparse, colbert], got {weights!r}") from error
        if len(values) != 3 or not np.isfinite(values).all():
            raise InputError(f"weights must be three finite numbers [dense, sparse, colbert], got {weights!r}")
        if sum(values) == 0:
            raise InputError(f"the weights {weights!r} sum to 0; the combined score divides by their sum")
        return cls(*values)


@dataclass(frozen=True)
class PairScores:
    """Scores of P pairs, (P,) float32 each; `truncated` of their 2P texts were cut to the maximum length."""

    dense: NDArray[np.float32]
    sparse: NDArray[np.float32]
    colbert: NDArray[np.float32]
    truncated: int = 0

    def combined(self, weights: FusionWeights) -> dict[str, list[float]]:
        """All five scores under FlagEmbedding's keys, in its order.

        `sparse+dense` is 0 where both weights are 0 (nothing is combined; FlagEmbedding gives NaN).
        """
        # relative to the largest, in float64: weights may be of any size
        given = np.array([weights.dense, weights.sparse, weights.colbert])
        d, s, c = given / max(float(np.abs(given).max()), np.finfo(np.float64).tiny)
        two = self.dense * d + self.sparse * s
        three = (two + self.colbert * c) / (d + s + c)
        sparse_dense = two / (d + s) if d + s != 0 else np.zeros_like(two)
        return {
            "colbert": self.colbert.tolist(),
            "sparse": self.sparse.tolist(),
            "dense": self.dense.tolist(),
            "sparse+dense": sparse_dense.astype(np.float32).tolist(),
            "colbert+sparse+dense": three.astype(np.float32).tolist(),
        }


def lexical_score(a: LexicalWeights, b: LexicalWeights) -> float:
    """Sum over shared ids of the product of their weights.

    >>> lexical_score({"5": 0.5, "7": 0.25}, {"5": 0.5, "9": 1.0})
    0.25
    """
    short, long = (a, b) if len(a) <= len(b) else (b, a)
    return float(sum(weight * long[token] for token, weight in short.items() if token in long))


@overload
def compute_lexical_matching_score(lexical_weights_1: LexicalWeights, lexical_weights_2: LexicalWeights) -> float: ...
@overload
def compute_lexical_matching_score(
    lexical_weights_1: Sequence[LexicalWeights], lexical_weights_2: Sequence[LexicalWeights]
) -> NDArray[np.float64]: ...
def compute_lexical_matching_score(
    lexical_weights_1: LexicalWeights | Sequence[LexicalWeights],
    lexical_weights_2: LexicalWeights | Sequence[LexicalWeights],
) -> float | NDArray[np.float64]:
    """Lexical score of two texts, or of every text of one list (N) with every text of another (M).

    Returns:
        A float for two mappings, (N, M) for two lists.

    Raises:
        InputError: one side is a mapping and the other a list, or either is something else.
    """
    a, b = lexical_weights_1, lexical_weights_2
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return lexical_score(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        scores = np.array([[lexical_score(x, y) for y in b] for x in a], dtype=np.float64)
        return scores.reshape(len(a), len(b))  # an empty list would lose its axis
    raise InputError(
        f"lexical weights must be two dicts or two lists of dicts, got {type(a).__name__} and {type(b).__name__}"
    )


def colbert_score(q_reps: NDArray[Any], p_reps: NDArray[Any]) -> float:
    """Mean over query rows of the largest dot product with a passage row (MaxSim).

    Args:
        q_reps: (Lq, C), the query's rows.
        p_reps: (Lp, C), the passage's rows.

    Raises:
        InputError: not two matrices of the same width, or one has no rows.
    """
    q, p = np.asarray(q_reps), np.asarray(p_reps)
    if q.ndim != 2 or p.ndim != 2 or q.shape[1] != p.shape[1] or 0 in (q.shape[0], p.shape[0]):
        raise InputError(f"ColBERT vectors must be two (rows, C) matrices of one width, got {q.shape} and {p.shape}")
    similarity = q.astype(np.float32, copy=False) @ p.astype(np.float32, copy=False).T
    return float(similarity.max(axis=1).mean())
