"""What `encode` returns."""

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.colbert import PackedRows
from m3_runtime.encode.sparse import SparseRow, SparseVectors

_log = logging.getLogger("m3_runtime")

KEYS = ("dense_vecs", "lexical_weights", "colbert_vecs")
"""FlagEmbedding's result keys, always all three; None for a head that was not asked for."""


@dataclass(frozen=True, eq=False)
class Encoding(Mapping[str, Any]):
    """The vectors of S texts, in input order; also a mapping with FlagEmbedding's three keys.

    After `encode("one text")` (`is_single`) the results are unwrapped: one vector, one dict, one matrix.

    Attributes:
        dense_vecs: (S, H) float32, or (H,) for a single text.
        sparse: the lexical weights as arrays; always S rows, also for a single text.
        colbert_vecs: S arrays (L-1, C) that own their memory, or one for a single text; float32 or float16. With
            colbert_dtype="int8", "int4" or "binary" they are `PackedRows`, which numpy takes for such arrays.
        token_counts: (S,) int64, tokens that were encoded, both special tokens included.
        truncated: how many texts were cut to max_length.
        is_single: the input was one text, not a list.
        scores: (S,) float32, before the sigmoid, where the S texts are pairs and the model is a reranker; else None.
        out_of_vocabulary: how many texts have a piece that the bundle dropped, so that their vectors are not the full
            model's; 0 where the bundle has the whole vocabulary.
    """

    dense_vecs: NDArray[np.float32] | None
    sparse: SparseVectors | None
    colbert_vecs: list[Any] | NDArray[Any] | PackedRows | None
    token_counts: NDArray[np.int64]
    truncated: int = 0
    is_single: bool = False
    scores: NDArray[np.float32] | None = None
    out_of_vocabulary: int = 0

    @cached_property
    def lexical_weights(self) -> list[dict[str, float]] | dict[str, float] | None:
        """Per text: decimal token id to weight, ids in order of first occurrence; built when first read."""
        if self.sparse is None:
            return None
        return self.sparse.lexical_weights(0) if self.is_single else list(self.sparse)

    @property
    def nbytes(self) -> int:
        """Memory of the vectors."""
        given = self.colbert_vecs
        colbert = given if isinstance(given, list) else [] if given is None else [given]
        sparse = [] if self.sparse is None else [self.sparse.indptr, self.sparse.ids, self.sparse.weights]
        pooled = [array for array in (self.dense_vecs, self.scores) if array is not None]
        return sum(array.nbytes for array in (*pooled, *sparse, *colbert, self.token_counts))

    def single(self) -> "Encoding":
        """The encoding of the only text, unwrapped."""
        assert isinstance(self.colbert_vecs, list | None)
        return replace(
            self,
            dense_vecs=None if self.dense_vecs is None else self.dense_vecs[0],
            colbert_vecs=None if self.colbert_vecs is None else self.colbert_vecs[0],
            is_single=True,
        )

    def logged(self) -> "Encoding":
        """The same; its counts go to the logger "m3_runtime", for callers that hand on the vectors alone."""
        log_losses(f"{len(self.token_counts)} texts", self.truncated, self.out_of_vocabulary)
        return self

    def leading_dimensions(self, size: int, *, normalize: bool) -> "Encoding":
        """The same texts with the first `size` dimensions of their dense and ColBERT vectors.

        FlagEmbedding's `truncate_dim` cuts before it normalizes. Cutting afterwards and normalizing again gives the
        same vectors, because the first normalization only scaled them. Narrower vectors stay as they are.
        """
        dense, colbert = self.dense_vecs, self.colbert_vecs
        if isinstance(colbert, list):
            colbert = [leading(np.asarray(rows), size, normalize=normalize) for rows in colbert]
        elif colbert is not None:
            colbert = leading(np.asarray(colbert), size, normalize=normalize)
        return replace(
            self, dense_vecs=None if dense is None else leading(dense, size, normalize=normalize), colbert_vecs=colbert
        )

    def __getitem__(self, key: str) -> Any:
        if key not in KEYS:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(KEYS)

    def __len__(self) -> int:
        return len(KEYS)

    def __eq__(self, other: object) -> bool:
        return self is other  # arrays have no single truth value

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        heads = [key for key in KEYS if (self.sparse if key == KEYS[1] else getattr(self, key)) is not None]
        return f"Encoding(texts={len(self.token_counts)}, heads={heads}, truncated={self.truncated})"


def log_losses(
    of: str, truncated: int, out_of_vocabulary: int = 0, *, maximum: str = "the maximum", remedy: str = ""
) -> None:
    """Log how many texts lost something, for callers whose results have no place for it; `of` is what they are of."""
    if truncated:
        _log.warning("%d of %s had more tokens than %s and were cut%s", truncated, of, maximum, remedy)
    if out_of_vocabulary:
        _log.warning("%d of %s have pieces that the bundle dropped", out_of_vocabulary, of)


class EncodingBuilder:
    """One encoding of S texts that are encoded in different batches."""

    def __init__(self, texts: int, heads: Collection[Head], hidden_size: int = 0, vocab_size: int = 0) -> None:
        """Expect S = `texts` texts; of their vectors only those of `heads` are kept. The sizes matter if S is 0."""
        self.missing = texts
        self._is_here = np.zeros(texts, np.bool_)
        self._heads = heads
        self._token_counts = np.zeros(texts, np.int64)
        self._dense = np.empty((0, hidden_size), np.float32)
        self._sparse = [_NO_WEIGHTS] * texts
        self._vocab_size = vocab_size
        self._colbert: list[NDArray[Any] | PackedRows] = [np.empty((0, 0), np.float32)] * texts
        self._scores = np.empty(texts, np.float32)

    def take(self, index: int, batch: Encoding, row: int) -> None:
        """Copy the vectors of text `index`, which is row `row` of a batch; its batch mates are not kept."""
        self._token_counts[index] = batch.token_counts[row]
        if Head.DENSE in self._heads and batch.dense_vecs is not None:
            if not self._dense.size:
                self._dense = np.empty((len(self._token_counts), batch.dense_vecs.shape[1]), np.float32)
            self._dense[index] = batch.dense_vecs[row]
        if Head.SPARSE in self._heads and batch.sparse is not None:
            self._sparse[index], self._vocab_size = batch.sparse.row(row), batch.sparse.vocab_size
        if Head.COLBERT in self._heads and batch.colbert_vecs is not None:
            self._colbert[index] = batch.colbert_vecs[row]
        if Head.SCORE in self._heads and batch.scores is not None:
            self._scores[index] = batch.scores[row]
        self._is_here[index] = True
        self.missing -= 1

    @property
    def present(self) -> NDArray[np.int64]:
        """(P,) indices of the texts that are not missing."""
        return np.flatnonzero(self._is_here)

    def encoding(self, truncated: int = 0, out_of_vocabulary: int = 0) -> Encoding:
        """All S texts, with nothing for those that are missing; how many were cut is for the caller to say."""
        is_sparse = Head.SPARSE in self._heads
        return Encoding(
            dense_vecs=self._dense if Head.DENSE in self._heads else None,
            sparse=SparseVectors.from_rows(self._sparse, self._vocab_size) if is_sparse else None,
            colbert_vecs=self._colbert if Head.COLBERT in self._heads else None,
            token_counts=self._token_counts,
            truncated=truncated,
            out_of_vocabulary=out_of_vocabulary,
            scores=self._scores if Head.SCORE in self._heads else None,
        )


_NO_WEIGHTS: SparseRow = np.empty(0, np.int64), np.empty(0, np.float32)
_SMALLEST_NORM = 1e-12


def leading(vectors: NDArray[Any], size: int, *, normalize: bool) -> NDArray[Any]:
    """The first `size` dimensions of vectors (…, H), at unit length if they are to have it."""
    kept = vectors[..., :size].copy()
    if not normalize:
        return kept
    norm = np.linalg.norm(kept.astype(np.float32), axis=-1, keepdims=True)
    return (kept / np.maximum(norm, _SMALLEST_NORM)).astype(vectors.dtype)
