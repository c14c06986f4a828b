"""Vectors as named arrays, for pipes and files. Needs numpy alone, which every peer has.

Texts differ in length, so lexical weights and ColBERT rows of all texts lie one after the other, with the place where
each text begins.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

DENSE = "dense"


@dataclass(frozen=True)
class Vectors:
    """What a contender gives for N texts; None for a head that it lacks."""

    dense: Any  # (N, H)
    lexical: Sequence[Mapping[int, float]] | None  # per text, token id to weight
    colbert: Sequence[Any] | None  # per text, (L-1, C)


def by_id(weights: Mapping[str, Any]) -> dict[int, float]:
    """FlagEmbedding's lexical weights with numbers for keys.

    >>> by_id({"5": 0.5})
    {5: 0.5}
    """
    return {int(key): float(value) for key, value in weights.items()}


def largest_by_id(ids: Iterable[int], weights: Iterable[float], unused: Collection[int]) -> dict[int, float]:
    """Lexical weights of a text's tokens: of each id the largest above 0, without the unused ids.

    >>> largest_by_id([0, 5, 6, 5, 7], [0.9, 0.5, 0.25, 0.75, 0.0], unused={0})
    {5: 0.75, 6: 0.25}
    """
    largest: dict[int, float] = {}
    for token, weight in zip(ids, weights, strict=True):
        if token not in unused and weight > largest.get(token, 0.0):
            largest[token] = weight
    return largest


def to_arrays(vectors: Vectors) -> dict[str, Any]:
    """Vectors as named arrays; a head that is missing has none."""
    arrays = {DENSE: np.asarray(vectors.dense, dtype=np.float32)}
    if vectors.lexical is not None:
        arrays["sparse_ids"] = np.array([i for row in vectors.lexical for i in row], dtype=np.int32)
        arrays["sparse_weights"] = np.array([w for row in vectors.lexical for w in row.values()], dtype=np.float32)
        arrays["sparse_starts"] = _starts(vectors.lexical)
    if vectors.colbert is not None:
        arrays["colbert"] = np.concatenate([np.asarray(rows, dtype=np.float32) for rows in vectors.colbert])
        arrays["colbert_starts"] = _starts(vectors.colbert)
    return arrays


def from_arrays(arrays: Mapping[str, Any]) -> Vectors:
    """The vectors of `to_arrays`."""
    lexical = colbert = None
    if (starts := arrays.get("sparse_starts")) is not None:
        ids, weights = (_split(arrays[name], starts) for name in ("sparse_ids", "sparse_weights"))
        lexical = [dict(zip(i.tolist(), w.tolist(), strict=True)) for i, w in zip(ids, weights, strict=True)]
    if (starts := arrays.get("colbert_starts")) is not None:
        colbert = _split(arrays["colbert"], starts)
    return Vectors(arrays[DENSE], lexical, colbert)


def _starts(rows: Sequence[Any]) -> Any:
    """Where each text begins, and where the last one ends: (N + 1,)."""
    return np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)


def _split(values: Any, starts: Any) -> list[Any]:
    return [values[start:end] for start, end in pairwise(starts)]
