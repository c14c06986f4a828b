"""Vectors on their way from a worker to its parent: an npz file. Needs numpy alone, which every peer has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


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

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that are there."""
        found = {"dense": self.dense, "sparse": self.lexical, "colbert": self.colbert}
        return tuple(name for name, values in found.items() if values is not None)


def by_id(weights: Mapping[str, Any]) -> dict[int, float]:
    """FlagEmbedding's lexical weights with numbers for keys.

    >>> by_id({"5": 0.5})
    {5: 0.5}
    """
    return {int(key): float(value) for key, value in weights.items()}


def write_vectors(vectors: Vectors, path: Path) -> None:
    """Write them; rows of all texts one after the other, with how many each text has."""
    arrays = {"dense": np.asarray(vectors.dense, dtype=np.float32)}
    if vectors.lexical is not None:
        arrays["sparse_counts"] = np.array([len(row) for row in vectors.lexical], dtype=np.int64)
        arrays["sparse_ids"] = np.array([i for row in vectors.lexical for i in row], dtype=np.int32)
        arrays["sparse_weights"] = np.array([w for row in vectors.lexical for w in row.values()], dtype=np.float32)
    if vectors.colbert is not None:
        arrays["colbert_counts"] = np.array([len(rows) for rows in vectors.colbert], dtype=np.int64)
        arrays["colbert"] = np.concatenate([np.asarray(rows, dtype=np.float32) for rows in vectors.colbert])
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for its own arguments


def read_vectors(path: Path) -> Vectors:
    """Read them again."""
    with np.load(path, allow_pickle=False) as arrays:
        lexical = colbert = None
        if "sparse_ids" in arrays:
            ids, weights = (_split(arrays[name], arrays["sparse_counts"]) for name in ("sparse_ids", "sparse_weights"))
            pairs = zip(ids, weights, strict=True)
            lexical = [dict(zip(row.tolist(), values.tolist(), strict=True)) for row, values in pairs]
        if "colbert" in arrays:
            colbert = _split(arrays["colbert"], arrays["colbert_counts"])
        return Vectors(arrays["dense"], lexical, colbert)


def _split(values: Any, counts: Any) -> list[Any]:
    return np.split(values, np.cumsum(counts)[:-1])
