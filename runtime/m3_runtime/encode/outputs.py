"""From what a graph returns to an `Encoding`. Pure numpy on whole batches."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head, ModelInfo
from m3_runtime.encode.colbert import PackedRows
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import EncodeOptions
from m3_runtime.encode.sparse import SparseVectors, gather_sparse
from m3_runtime.engines import RawOutputs, TokenBatch
from m3_runtime.errors import EngineError
from m3_runtime.tokenizer import TokenizedTexts


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


def _check_finite(raw: RawOutputs) -> None:
    """NaN hides well: it is not above 0, so lexical weights would just be missing."""
    for head in Head:
        values = getattr(raw, head.output_name)
        if values is not None and not np.isfinite(values).all():
            raise EngineError(f"the graph's {head.output_name} are not all finite; export the bundle again")


class Results:
    """Where the batches' results go: places for all S texts, filled batch by batch."""

    def __init__(self, texts: int, options: EncodeOptions, manifest: ModelInfo) -> None:
        """No results yet; S is `texts`."""
        self._options = options
        self._vocab_size, self._normalize = manifest.geometry.vocab_size, manifest.normalize
        self._lengths = np.zeros(texts, dtype=np.int64)
        self._truncated = self._out_of_vocabulary = 0
        width = manifest.geometry.hidden_size if Head.DENSE in options.heads else 0
        self._dense = np.empty((texts, width), dtype=np.float32)
        self._scores = np.empty(texts, dtype=np.float32)
        self._sparse: list[SparseVectors] = []
        self._order: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self._colbert: list[NDArray[Any] | PackedRows] = [np.empty((0, 0), np.float32)] * texts

    def note(self, start: int, tokenized: TokenizedTexts) -> None:
        """Keep what is known of texts before they run; the first of them is text `start`."""
        lengths = tokenized.lengths
        self._lengths[start : start + lengths.size] = lengths
        self._truncated += tokenized.truncated
        self._out_of_vocabulary += tokenized.out_of_vocabulary

    def take(self, indices: NDArray[np.int64], batch: TokenBatch, raw: RawOutputs) -> None:
        """Put the results of one batch, which holds the texts at `indices` row by row, in their places."""
        _check_finite(raw)
        self._order.append(indices)
        if raw.dense_vecs is not None:
            if raw.dense_vecs.shape[1:] != self._dense.shape[1:]:
                found, expected = raw.dense_vecs.shape[1:], self._dense.shape[1:]
                raise EngineError(f"the graph gives dense vectors of shape {found}, its manifest says {expected}")
            self._dense[indices] = raw.dense_vecs
        if raw.token_weights is not None:
            self._sparse.append(sparse_rows(batch, raw.token_weights, self._vocab_size))
        if raw.colbert_vecs is not None:
            for index, rows in zip(indices, colbert_rows(batch, raw.colbert_vecs), strict=True):
                self._colbert[index] = self._options.colbert.of(rows, normalize=self._normalize)
        if raw.logits is not None:
            if raw.logits.shape[1:] != (1,):
                raise EngineError(f"the graph gives {raw.logits.shape[1:]} scores a pair, expected one")
            self._scores[indices] = raw.logits[:, 0]

    def encoding(self) -> Encoding:
        """All results, in input order."""
        heads, order = self._options.heads, np.concatenate(self._order)
        return Encoding(
            dense_vecs=self._dense if Head.DENSE in heads else None,
            sparse=gather_sparse(self._sparse, order, self._vocab_size) if Head.SPARSE in heads else None,
            colbert_vecs=self._colbert if Head.COLBERT in heads else None,
            token_counts=self._lengths,
            truncated=self._truncated,
            out_of_vocabulary=self._out_of_vocabulary,
            scores=self._scores if Head.SCORE in heads else None,
        )
