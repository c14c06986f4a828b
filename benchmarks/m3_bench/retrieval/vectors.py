"""Encoding the texts of a dataset in parts, so that memory holds what searching needs and no more."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.retrieval.hybrids import FloatArray
from m3_runtime import Encoding, M3Encoder
from m3_runtime.bundle.manifest import Head
from m3_runtime.io.progress import Progress

PART_TEXTS = 256


@dataclass(frozen=True, eq=False)
class TextVectors:
    """The vectors of S texts."""

    dense: FloatArray  # (S, H) float32
    sparse: Any  # (S, V) scipy CSR float32, or None without the head
    colbert: Mapping[int, NDArray[np.float16]]  # rows (L-1, C) of each text; empty where they were not asked for
    truncated: int  # how many texts were cut


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

    def vectors(self, texts: Sequence[str], title: str, *, with_colbert: bool = False) -> TextVectors:
        """Encode S texts, at least one; ColBERT rows are kept only if asked for, and if the bundle has the head.

        Raises:
            M3Error: the encoder failed, or `max_length` is more than the model takes.
        """
        from scipy.sparse import csr_matrix, vstack

        heads = [head for head in self.heads if with_colbert or head is not Head.COLBERT]
        dense, sparse, truncated = [], [], 0
        colbert: list[NDArray[np.float16]] = []
        for part in self._parts(texts, title):
            found = self._encode(part, heads)
            assert isinstance(found.dense_vecs, np.ndarray)  # every bundle has the head
            dense.append(found.dense_vecs)
            colbert += found.colbert_vecs or ()
            truncated += found.truncated
            if (rows := found.sparse) is not None:
                sparse.append(csr_matrix(rows.to_csr(), shape=(len(rows), rows.vocab_size), dtype=np.float32))
        matrix = vstack(sparse, "csr") if sparse else None
        return TextVectors(np.concatenate(dense), matrix, dict(enumerate(colbert)), truncated)

    def colbert_rows(self, texts: Sequence[str], title: str) -> Iterator[NDArray[np.float16]]:
        """Yield the ColBERT rows (L-1, C) of each text."""
        for part in self._parts(texts, title):
            yield from self._encode(part, [Head.COLBERT]).colbert_vecs or ()

    def _encode(self, texts: list[str], heads: Collection[Head]) -> Encoding:
        return self.encoder.encode_heads(texts, heads, max_length=self.max_length, colbert_dtype="float16")

    def _parts(self, texts: Sequence[str], title: str) -> Iterator[list[str]]:
        starts = range(0, len(texts), PART_TEXTS)
        for start in self.progress.bar(starts, title, unit=f"×{PART_TEXTS} texts"):
            yield list(texts[start : start + PART_TEXTS])
