"""From what a graph returns to an `Encoding`. Pure numpy on whole batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head, ModelInfo
from m3_runtime.encode.batching import Ready
from m3_runtime.encode.colbert import PackedRows
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import EncodeOptions
from m3_runtime.encode.sparse import SparseVectors
from m3_runtime.engines import RawOutputs, TokenBatch
from m3_runtime.errors import EngineError


def sparse_rows(batch: TokenBatch, token_weights: NDArray[np.float32], vocab_size: int) -> SparseVectors:
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


def colbert_rows(batch: TokenBatch, colbert_vecs: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield each text's ColBERT rows: tokens 1 .. L-1, that is without `<s>` and with `</s>`.

    Each (L-1, C) array is a copy that owns its memory, so keeping one does not keep the batch.

    Args:
        batch: N texts in R rows of T tokens.
        colbert_vecs: (R, T-1, C), the ColBERT head's output; row i belongs to token i+1.
    """
    for numbers, vectors in zip(batch.attention_mask, colbert_vecs, strict=True):
        for number in range(1, int(numbers.max()) + 1):
            columns = np.flatnonzero(numbers == number)[1:] - 1
            yield vectors[columns]


def batch_encoding(
    ready: Ready, batch: TokenBatch, raw: RawOutputs, options: EncodeOptions, manifest: ModelInfo
) -> Encoding:
    """The vectors of the N texts that ran together, row by row.

    Raises:
        EngineError: numbers are not finite, or not as many as the manifest says.
    """
    for head in Head:  # NaN hides well: it is not above 0, so lexical weights would just be missing
        values = getattr(raw, head.output_name)
        if values is not None and not np.isfinite(values).all():
            raise EngineError(f"the graph's {head.output_name} are not all finite; export the bundle again")
    width, vocab_size = manifest.geometry.hidden_size, manifest.geometry.vocab_size
    if raw.dense_vecs is not None and raw.dense_vecs.shape[1:] != (width,):
        found = raw.dense_vecs.shape[1:]
        raise EngineError(f"the graph gives dense vectors of shape {found}, its manifest says {(width,)}")
    if raw.logits is not None and raw.logits.shape[1:] != (1,):
        raise EngineError(f"the graph gives {raw.logits.shape[1:]} scores a pair, expected one")
    colbert: list[NDArray[Any] | PackedRows] | None = None
    if raw.colbert_vecs is not None:
        rows = colbert_rows(batch, raw.colbert_vecs)
        colbert = [options.colbert.of(one, normalize=manifest.normalize) for one in rows]
    return Encoding(
        dense_vecs=raw.dense_vecs,
        sparse=None if raw.token_weights is None else sparse_rows(batch, raw.token_weights, vocab_size),
        colbert_vecs=colbert,
        token_counts=np.array([row.size for row in ready.ids], np.int64),
        scores=None if raw.logits is None else raw.logits[:, 0],
    )
