"""Lexical weights of many texts as arrays: what an inverted index or a sparse matrix wants."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

SparseRow = tuple[NDArray[np.int64], NDArray[np.float32]]
"""The ids and weights of one text."""


@dataclass(frozen=True, eq=False)
class SparseVectors:
    """S sparse vectors over the vocabulary, in compressed rows.

    Text s has `ids[indptr[s]:indptr[s + 1]]` and the weights at the same places, in order of first
    occurrence. `indptr` (S+1,) int64, `ids` (N,) int64, `weights` (N,) float32, all weights positive.
    """

    indptr: NDArray[np.int64]
    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    vocab_size: int

    @classmethod
    def from_rows(cls, rows: Sequence[SparseRow], vocab_size: int) -> "SparseVectors":
        """The rows of S texts, in order; S may be 0."""
        indptr = np.cumsum([0, *(ids.size for ids, _ in rows)], dtype=np.int64)
        ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in rows)])
        weights = np.concatenate([np.empty(0, np.float32), *(weights for _, weights in rows)])
        return cls(indptr, ids, weights, vocab_size)

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __iter__(self) -> Iterator[dict[str, float]]:
        return (self.lexical_weights(row) for row in range(len(self)))

    @overload
    def __getitem__(self, key: int) -> dict[str, float]: ...
    @overload
    def __getitem__(self, key: slice) -> "SparseVectors": ...
    def __getitem__(self, key: int | slice) -> "dict[str, float] | SparseVectors":
        """One text's lexical weights, or the vectors of some texts."""
        if not isinstance(key, slice):
            return self.lexical_weights(key)
        chosen = range(len(self))[key]
        return SparseVectors.from_rows([self.row(index) for index in chosen], self.vocab_size)

    def row(self, index: int) -> SparseRow:
        """The ids and weights of one text.

        Raises:
            IndexError: there is no such text.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        start, end = self.indptr[index % len(self)], self.indptr[index % len(self) + 1]
        return self.ids[start:end], self.weights[start:end]

    def rows(self) -> Iterator[SparseRow]:
        """The ids and weights of every text, in order."""
        return (self.row(index) for index in range(len(self)))

    def lexical_weights(self, index: int) -> dict[str, float]:
        """One text as FlagEmbedding shows it: decimal ids to weights, as Python floats.

        Raises:
            IndexError: there is no such text.
        """
        ids, weights = self.row(index)
        return dict(zip(map(str, ids.tolist()), weights.tolist(), strict=True))

    def to_csr(self) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        """(data, indices, indptr) of an (S, vocab_size) matrix, column indices ascending in each row.

        For scipy: `scipy.sparse.csr_matrix(vectors.to_csr(), shape=(len(vectors), vectors.vocab_size))`.
        """
        rows = np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.indptr))
        order = np.lexsort((self.ids, rows))
        return self.weights[order], self.ids[order], self.indptr
