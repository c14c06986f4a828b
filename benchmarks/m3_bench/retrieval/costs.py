"""What a search method costs: milliseconds for a query, bytes for the index.

Queries are asked one at a time, from text to ranking, on an exact index in memory: no network, no approximation.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.retrieval.search import best
from m3_bench.retrieval.vectors import TextEncoder, TextVectors
from m3_runtime.bundle.manifest import Head
from m3_runtime.scoring import colbert_score

TIMED_QUERIES = 10


@dataclass(frozen=True)
class Cost:
    """Of one method: the median time of a query, and what N documents take."""

    query_ms: float
    index_bytes: int


def median_ms(ask: Callable[[str], object], queries: Sequence[str]) -> float:
    """Time of a query, in the median of the first few; the first is asked once more, before them."""
    ask(queries[0])
    seconds = []
    for query in queries[:TIMED_QUERIES]:
        started_s = time.perf_counter()
        ask(query)
        seconds.append(time.perf_counter() - started_s)
    return round(1000 * median(seconds), 3)


@dataclass(frozen=True, eq=False)
class HeadIndex:
    """N documents' vectors in memory."""

    texts: TextEncoder  # encodes the queries
    vectors: TextVectors  # of the documents
    rows: Mapping[int, NDArray[Any]]  # ColBERT rows of those that the timed queries have as candidates
    candidates: int  # how many of dense's best ColBERT ranks

    def cost(self, heads: Collection[Head], queries: Sequence[str]) -> Cost:
        """Of searching with these heads together."""
        postings = self.vectors.sparse.T.tocsr() if Head.SPARSE in heads else None
        return Cost(median_ms(lambda text: self._ask(text, heads, postings), queries), self._bytes(heads))

    def _ask(self, text: str, heads: Collection[Head], postings: Any) -> None:
        is_dense = Head.DENSE in heads or Head.COLBERT in heads
        found = self.texts.encoder.encode(
            text,
            max_length=self.texts.max_length,
            return_dense=is_dense,
            return_sparse=Head.SPARSE in heads,
            return_colbert_vecs=Head.COLBERT in heads,
        )
        scores = np.zeros(len(self.vectors.dense), np.float32)
        if is_dense:
            scores += self.vectors.dense @ found["dense_vecs"]
        if postings is not None and found.sparse is not None and len(found.sparse.ids):
            scores += postings[found.sparse.ids].T @ found.sparse.weights
        for index in best(scores, self.candidates if Head.COLBERT in heads else 100).tolist():
            if Head.COLBERT in heads and index in self.rows:
                colbert_score(found["colbert_vecs"], self.rows[index])

    def _bytes(self, heads: Collection[Head]) -> int:
        """float32 dense vectors, which are ColBERT's first stage, lexical weights with ids, float16 ColBERT rows."""
        vectors, total = self.vectors, 0
        if Head.DENSE in heads or Head.COLBERT in heads:
            total += vectors.dense.nbytes
        if Head.SPARSE in heads:
            total += vectors.sparse.data.nbytes + vectors.sparse.indices.nbytes + vectors.sparse.indptr.nbytes
        if Head.COLBERT in heads:
            width = next(iter(self.rows.values())).shape[1] if self.rows else 0
            total += 2 * width * (vectors.tokens - len(vectors.dense))
        return total
