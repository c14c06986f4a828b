"""From what a graph returns to what each text gets. Pure functions on whole batches."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import DTypeLike, NDArray

from m3_runtime.encode.sparse import SparseVectors
from m3_runtime.engines import TokenBatch


def lexical_rows(batch: TokenBatch, token_weights: NDArray[np.float32], vocab_size: int) -> SparseVectors:
    """Aggregate token weights to one weight per id and text, as FlagEmbedding does.

    Per text: weights that are not positive are dropped, of an id that repeats the largest weight is kept, and
    ids come in the order of their first positive weight. Padding and unused ids are 0 in the graph's output
    already.

    Args:
        batch: N texts in R rows of T tokens.
        token_weights: (R, T), the sparse head's output.
        vocab_size: above every id.
    """
    text_of, count = batch.texts(), int(batch.attention_mask.max(axis=1).sum())
    places = np.flatnonzero(token_weights > 0)
    places = places[np.argsort(text_of.flat[places], kind="stable")]
    texts, ids, weights = text_of.flat[places], batch.input_ids.flat[places], token_weights.flat[places]
    # Sorting by (text, id) brings repeats together; the sort is stable, so each run begins with the first occurrence.
    key = texts * vocab_size + ids
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    first = order[starts]
    by_occurrence = np.argsort(first, kind="stable")
    kept = first[by_occurrence]
    largest = np.maximum.reduceat(weights[order], starts) if starts.size else weights
    counts = np.bincount(texts[kept], minlength=count)
    indptr = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return SparseVectors(indptr, ids[kept], largest[by_occurrence].astype(np.float32, copy=False), vocab_size)


def colbert_rows(
    batch: TokenBatch, colbert_vecs: NDArray[np.float32], dtype: DTypeLike
) -> Iterator[NDArray[np.floating]]:
    """Yield each text's ColBERT rows: tokens 1 .. L-1, that is without `<s>` and with `</s>`.

    Each (L-1, C) array is a copy that owns its memory, so keeping one does not keep the batch.

    Args:
        batch: N texts in R rows of T tokens.
        colbert_vecs: (R, T-1, C), the ColBERT head's output; row i belongs to token i+1.
        dtype: float32 or float16.
    """
    for numbers, vectors in zip(batch.attention_mask, colbert_vecs, strict=True):
        for number in range(1, int(numbers.max()) + 1):
            columns = np.flatnonzero(numbers == number)[1:] - 1
            yield vectors[columns].astype(dtype, copy=False)
