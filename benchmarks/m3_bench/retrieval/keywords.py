"""Searching without the model's heads: BM25, TF-IDF, and static word vectors. What came before, to compare with."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.retrieval.hybrids import FloatArray
from m3_runtime import M3Encoder
from m3_runtime.bundle.reader import Bundle
from m3_runtime.errors import InputError
from m3_runtime.extras import import_extra

Tokens = Sequence[Sequence[str]]
K1, B = 0.9, 0.4
"""Pyserini's values of BM25, with which the baselines of MIRACL, MLDR and MKQA were made."""


class Bm25:
    """BM25 over N documents, by Lucene's formula."""

    def __init__(self, documents: Tokens) -> None:
        """Index the tokens of each document."""
        from bm25s import BM25

        self._size, self._index = len(documents), BM25(k1=K1, b=B, method="lucene")
        self._vocabulary: Mapping[str, int] = {}
        if any(documents):
            self._index.index([list(tokens) for tokens in documents], show_progress=False)
            self._vocabulary = self._index.vocab_dict

    def scores(self, tokens: Iterable[str]) -> FloatArray:
        """(N,), 0 where no token is shared."""
        known = [token for token in tokens if token in self._vocabulary]
        return np.asarray(self._index.get_scores(known)) if known else np.zeros(self._size, np.float32)

    @property
    def nbytes(self) -> int:
        """Memory of the postings."""
        return sum(np.asarray(part).nbytes for part in self._index.scores.values()) if self._vocabulary else 0


class TfIdf:
    """Cosine of term counts times inverse document frequencies, as scikit-learn has them, over N documents."""

    def __init__(self, documents: Tokens) -> None:
        """Index the tokens of each document."""
        from scipy.sparse import csr_matrix

        self._columns = {token: n for n, token in enumerate(dict.fromkeys(t for tokens in documents for t in tokens))}
        columns = np.array([self._columns[token] for tokens in documents for token in tokens], np.int64)
        starts, shape = np.cumsum([0, *map(len, documents)]), (len(documents), max(1, len(self._columns)))
        counts = csr_matrix((np.ones(len(columns), np.float32), columns, starts), shape=shape)
        counts.sum_duplicates()
        self._idf = idf(counts.getnnz(axis=0), len(documents))
        rows = counts.multiply(self._idf).tocsr()
        lengths = np.sqrt(rows.multiply(rows).sum(axis=1))
        self._postings = rows.multiply(1 / np.maximum(lengths, np.finfo(np.float32).tiny)).T.tocsr()

    def scores(self, tokens: Iterable[str]) -> FloatArray:
        """(N,) cosines, 0 where no token is shared."""
        known = np.array([self._columns[token] for token in tokens if token in self._columns], np.int64)
        columns, counts = np.unique(known, return_counts=True)
        weights = counts * self._idf[columns]
        length = max(float(np.linalg.norm(weights)), float(np.finfo(np.float32).tiny))
        return np.asarray(self._postings[columns].T @ (weights / length), dtype=np.float32)

    @property
    def nbytes(self) -> int:
        """Memory of the postings."""
        return sum(part.nbytes for part in (self._postings.data, self._postings.indices, self._postings.indptr))


def idf(found: NDArray[np.int64], documents: int) -> FloatArray:
    """Inverse document frequencies of terms, of how many documents have each.

    >>> idf(np.array([9, 0]), 9).round(4).tolist()
    [1.0, 3.3025999069213867]
    """
    return (np.log((1 + documents) / (1 + found)) + 1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class WordTable:
    """The model's word embedding (V, H), read from a bundle's file: float32, or int8 with a scale for every few values.

    No transformer runs: this is what a static embedding of the same vocabulary gives, as Word2Vec's did.
    """

    values: NDArray[Any]
    scales: NDArray[np.float16] | None

    @classmethod
    def of(cls, bundle: Bundle) -> "WordTable":
        """The table of the first ONNX variant; it is mapped, not read.

        Raises:
            InputError: the bundle has no graph with a word embedding for every token id.
            ExtraNotInstalledError: onnx is not installed.
        """
        onnx = import_extra("onnx", "export")
        for variant in bundle.manifest.variants:
            if not variant.graph.endswith(".onnx"):
                continue
            path = bundle.file(variant.graph)
            found = {one.name: one for one in onnx.load(path, load_external_data=False).graph.initializer}
            values = next((found[name] for name in ("words", "words.int8") if name in found), None)
            if values is not None and values.dims[0] == bundle.manifest.geometry.vocab_size:
                scales = found.get("words.scale")
                return cls(_mapped(path, values), None if scales is None else _mapped(path, scales))
        raise InputError("the bundle has no ONNX variant with a word embedding for every token id")

    def rows(self, ids: NDArray[np.int32]) -> FloatArray:
        """(L, H) embeddings of ids."""
        rows = self.values[ids].astype(np.float32)
        if self.scales is not None:
            rows *= self.scales[ids].astype(np.float32)
        return rows.reshape(len(ids), math.prod(self.values.shape[1:]))


def _mapped(path: Any, tensor: Any) -> NDArray[Any]:
    """Not by onnx_ir, which refuses hard links, as copies of bundles may be."""
    from onnx import helper

    at = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.memmap(path.parent / at["location"], dtype, "r", int(at.get("offset", 0)), tuple(tensor.dims))


class StaticVectors:
    """Word embeddings, averaged with inverse document frequencies and made unit length, of N documents."""

    def __init__(self, encoder: M3Encoder, documents: Sequence[str], max_length: int | None) -> None:
        """Index the documents.

        Raises:
            InputError: the bundle has no table.
            ExtraNotInstalledError: onnx is not installed.
        """
        self._table, self._tokenizer = WordTable.of(encoder.bundle), encoder.tokenizer
        self._max_length = min(max_length or 512, encoder.max_tokens)
        ids = self._ids(documents)
        seen = np.concatenate([np.unique(row) for row in ids])
        self._idf = idf(np.bincount(seen, minlength=encoder.vocab_size), len(documents))
        # a single text lies at its own centre, and nothing would be left of it
        is_one = len({row.tobytes() for row in ids if row.size}) < 2
        rows = self._table.rows(np.unique(seen))
        self._centre = np.zeros(rows.shape[1], np.float32) if is_one else rows.mean(axis=0)
        self.vectors = np.stack([self._vector(row) for row in ids])

    def scores(self, text: str) -> FloatArray:
        """(N,) cosines."""
        return np.asarray(self.vectors @ self._vector(self._ids([text])[0]))

    @property
    def nbytes(self) -> int:
        """Memory of the documents' vectors; the table comes with the model."""
        return self.vectors.nbytes

    def _ids(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        return [row[1:-1] for row in self._tokenizer.encode_batch(list(texts), self._max_length).ids]

    def _vector(self, ids: NDArray[np.int32]) -> FloatArray:
        vector = self._idf[ids] @ (self._table.rows(ids) - self._centre)
        return np.asarray(vector / max(math.sqrt(float(vector @ vector)), 1e-12), dtype=np.float32)
