"""Encoding the texts of a dataset in parts, so that memory holds what searching needs and no more."""

from collections.abc import Iterator, Mapping, Sequence
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
    colbert: Mapping[int, NDArray[np.float16]]  # rows (L-1, C) of those texts that were kept; empty without the head
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

    def vectors(self, texts: Sequence[str], title: str, colbert_bytes: int) -> TextVectors:
        """Encode S texts with every head; ColBERT rows are kept while they fit.

        Args:
            texts: S of them, at least one.
            title: of the progress bar.
            colbert_bytes: most memory for ColBERT rows.

        Raises:
            M3Error: the encoder failed, or `max_length` is more than the model takes.
        """
        from scipy.sparse import vstack

        dense, sparse, truncated = [], [], 0
        colbert: dict[int, NDArray[np.float16]] = {}
        left_bytes = colbert_bytes
        for start, part in self._parts(texts, title):
            result = self._encode(part, with_colbert=Head.COLBERT in self.heads and left_bytes > 0)
            assert isinstance(result.dense_vecs, np.ndarray)  # dense is always asked for
            dense.append(result.dense_vecs)
            sparse.append(_matrix(result))
            truncated += result.truncated
            for place, rows in enumerate(result.colbert_vecs or (), start):
                left_bytes -= rows.nbytes
                if left_bytes >= 0:
                    colbert[place] = rows
        has_sparse = Head.SPARSE in self.heads
        return TextVectors(np.concatenate(dense), vstack(sparse, "csr") if has_sparse else None, colbert, truncated)

    def colbert_rows(
        self, texts: Sequence[str], wanted: Sequence[int], kept: Mapping[int, NDArray[np.float16]]
    ) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Yield indices and ColBERT rows (L-1, C) of some documents: those that were kept, and others encoded again.

        Rows pass through float16 either way, so a score does not depend on what was kept.

        Args:
            texts: of all N documents.
            wanted: indices of some.
            kept: rows by index.
        """
        yield from ((index, kept[index]) for index in wanted if index in kept)
        missing = [index for index in wanted if index not in kept]
        for start in range(0, len(missing), PART_TEXTS):
            part = missing[start : start + PART_TEXTS]
            again = self._encode([texts[index] for index in part], with_colbert=True).colbert_vecs or ()
            yield from zip(part, again, strict=True)

    def _parts(self, texts: Sequence[str], title: str) -> Iterator[tuple[int, Sequence[str]]]:
        starts = range(0, len(texts), PART_TEXTS)
        for start in self.progress.bar(starts, title, unit=f"×{PART_TEXTS} texts"):
            yield start, texts[start : start + PART_TEXTS]

    def _encode(self, texts: Sequence[str], *, with_colbert: bool) -> Encoding:
        return self.encoder.encode(
            list(texts),
            max_length=self.max_length,
            return_sparse=Head.SPARSE in self.heads,
            return_colbert_vecs=with_colbert,
            colbert_dtype="float16",
        )


def _matrix(result: Encoding) -> Any:
    from scipy.sparse import csr_matrix

    vectors = result.sparse
    if vectors is None:
        return None
    return csr_matrix(vectors.to_csr(), shape=(len(vectors), vectors.vocab_size), dtype=np.float32)
