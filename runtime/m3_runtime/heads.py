"""From what a graph returns to what each text gets. Pure functions on whole batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from m3_runtime.engines import TokenBatch


@dataclass(frozen=True)
class LexicalRows:
    """The lexical weights of B texts, one after the other.

    `counts` (B,) int64: ids per text; `ids` (N,) int64 and `weights` (N,) float32 hold N =
    counts.sum() entries.
    """

    counts: NDArray[np.int64]
    ids: NDArray[np.int64]
    weights: NDArray[np.float32]


def lexical_rows(batch: TokenBatch, token_weights: NDArray[np.float32], vocab_size: int) -> LexicalRows:
    """Aggregate token weights to one weight per id and text, as FlagEmbedding does.

    Per text: weights that are not positive are dropped, of an id that repeats the largest weight is kept, and
    ids come in the order of their first positive weight. Padding and unused ids are 0 in the graph's output
    already.

    Args:
        batch: B texts padded to T tokens.
        token_weights: (B, T), the sparse head's output.
        vocab_size: above every id.
    """
    rows, columns = np.nonzero(token_weights > 0)
    ids = batch.input_ids[rows, columns]
    if ids.size == 0:
        return LexicalRows(np.zeros(len(token_weights), np.int64), ids, np.empty(0, np.float32))
    # Sorting by (row, id) brings repeats together; the sort is stable, so each run begins with the first
    # occurrence.
    key = rows * vocab_size + ids
    order = np.argsort(key, kind="stable")
    ordered = key[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    largest = np.maximum.reduceat(token_weights[rows, columns][order], starts)
    first = order[starts]
    by_occurrence = np.argsort(first, kind="stable")
    kept = first[by_occurrence]
    return LexicalRows(
        counts=np.bincount(rows[kept], minlength=len(token_weights)).astype(np.int64),
        ids=ids[kept],
        weights=largest[by_occurrence].astype(np.float32, copy=False),
    )


def colbert_rows(
    lengths: NDArray[np.int64], colbert_vecs: NDArray[np.float32], dtype: DTypeLike
) -> Iterator[NDArray[np.floating]]:
    """Yield each text's ColBERT rows: tokens 1 .. L-1, that is without `<s>` and with `</s>`.

    Each (L-1, C) array is a copy that owns its memory, so keeping one does not keep the batch.

    Args:
        lengths: (B,) tokens per text, both special tokens included.
        colbert_vecs: (B, T-1, C), the ColBERT head's output; row i belongs to token i+1.
        dtype: float32 or float16.
    """
    for vectors, length in zip(colbert_vecs, lengths, strict=True):
        yield np.array(vectors[: length - 1], dtype=dtype, order="C")
