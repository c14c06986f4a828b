"""Vectors as named arrays, for pipes and files. Needs numpy alone, which every peer has.

Texts differ in length, so lexical weights and ColBERT rows of all texts lie one after the other, with the place where
each text begins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

DENSE, SPARSE_IDS, SPARSE_WEIGHTS, SPARSE_STARTS = "dense", "sparse_ids", "sparse_weights", "sparse_starts"
COLBERT, COLBERT_STARTS = "colbert", "colbert_starts"


@dataclass(frozen=True)
class Vectors:
    """What a contender gives for N texts; None for a head that it lacks.

    Attributes:
        dense: (N, H).
        lexical: per text, token id to weight.
        colbert: per text, (L-1, C).
    """

    dense: Any
    lexical: Sequence[Mapping[int, float]] | None
    colbert: Sequence[Any] | None


def by_id(weights: Mapping[str, Any]) -> dict[int, float]:
    """FlagEmbedding's lexical weights with numbers for keys.

    >>> by_id({"5": 0.5})
    {5: 0.5}
    """
    return {int(key): float(value) for key, value in weights.items()}


def to_arrays(vectors: Vectors) -> dict[str, Any]:
    """Vectors as named arrays; a head that is missing has none."""
    arrays = {DENSE: np.asarray(vectors.dense, dtype=np.float32)}
    if vectors.lexical is not None:
        arrays[SPARSE_IDS] = np.array([i for row in vectors.lexical for i in row], dtype=np.int32)
        arrays[SPARSE_WEIGHTS] = np.array([w for row in vectors.lexical for w in row.values()], dtype=np.float32)
        arrays[SPARSE_STARTS] = _starts(vectors.lexical)
    if vectors.colbert is not None:
        arrays[COLBERT] = np.concatenate([np.asarray(rows, dtype=np.float32) for rows in vectors.colbert])
        arrays[COLBERT_STARTS] = _starts(vectors.colbert)
    return arrays


def from_arrays(arrays: Mapping[str, Any]) -> Vectors:
    """The vectors of `to_arrays`."""
    lexical = colbert = None
    if SPARSE_STARTS in arrays:
        ids, weights = (_split(arrays[name], arrays[SPARSE_STARTS]) for name in (SPARSE_IDS, SPARSE_WEIGHTS))
        pairs = zip(ids, weights, strict=True)
        lexical = [dict(zip(row.tolist(), values.tolist(), strict=True)) for row, values in pairs]
    if COLBERT_STARTS in arrays:
        colbert = _split(arrays[COLBERT], arrays[COLBERT_STARTS])
    return Vectors(arrays[DENSE], lexical, colbert)


def _starts(rows: Sequence[Any]) -> Any:
    """Where each text begins, and where the last one ends: (N + 1,)."""
    return np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)


def _split(values: Any, starts: Any) -> list[Any]:
    return [values[start:end] for start, end in pairwise(starts)]
