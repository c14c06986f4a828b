"""Encoding the texts of a dataset in parts, so that memory holds what searching needs and no more."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.retrieval.hybrids import FloatArray
from m3_runtime import M3Encoder
from m3_runtime.bundle.manifest import Head
from m3_runtime.io.progress import Progress

PART_TEXTS = 256


@dataclass(frozen=True, eq=False)
class TextVectors:
    """The dense and sparse vectors of S texts."""

    dense: FloatArray  # (S, H) float32
    sparse: Any  # (S, V) scipy CSR float32, or None without the head
    truncated: int  # how many texts were cut
    tokens: int = 0  # that were encoded, both special tokens of each text included
    out_of_vocabulary: int = 0  # how many texts have a piece that the bundle dropped


@dataclass(frozen=True)
class TextEncoder:
    """An encoder with the settings of a measurement; `max_length` counts both special tokens, None is the usual."""

    encoder: M3Encoder
    max_length: int | None
    progress: Progress

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that the bundle has."""
        return self.encoder.bundle.manifest.heads

    def vectors(self, texts: Sequence[str], title: str) -> TextVectors:
        """Encode S texts, at least one.

        Raises:
            M3Error: the encoder failed, or `max_length` is more than the model takes.
        """
        from scipy.sparse import csr_matrix, vstack

        dense, sparse, truncated, tokens, respelled = [], [], 0, 0, 0
        has_sparse = Head.SPARSE in self.heads
        for part in self._parts(texts, title):
            found = self.encoder.encode(part, max_length=self.max_length, return_sparse=has_sparse)
            assert isinstance(found.dense_vecs, np.ndarray)  # dense is always asked for
            dense.append(found.dense_vecs)
            truncated, tokens = truncated + found.truncated, tokens + int(found.token_counts.sum())
            respelled += found.out_of_vocabulary
            if (rows := found.sparse) is not None:
                sparse.append(csr_matrix(rows.to_csr(), shape=(len(rows), rows.vocab_size), dtype=np.float32))
        whole = vstack(sparse, "csr") if has_sparse else None
        return TextVectors(np.concatenate(dense), whole, truncated, tokens, respelled)

    def colbert_rows(self, texts: Sequence[str], title: str, dim: int | None = None) -> Iterator[NDArray[np.float16]]:
        """Yield the ColBERT rows (L-1, C) of each text; with `dim` on so many principal axes."""
        for part in self._parts(texts, title):
            found = self.encoder.encode(
                part,
                max_length=self.max_length,
                return_dense=False,
                return_sparse=False,
                return_colbert_vecs=True,
                colbert_dtype="float16",
                colbert_dim=dim,
            )
            assert isinstance(found.colbert_vecs, list)
            yield from found.colbert_vecs

    def _parts(self, texts: Sequence[str], title: str) -> Iterator[list[str]]:
        starts = range(0, len(texts), PART_TEXTS)
        for start in self.progress.bar(starts, title, unit=f"×{PART_TEXTS} texts"):
            yield list(texts[start : start + PART_TEXTS])
