"""Texts to an `Encoding`: tokenize, batch, run, decode, put back in order."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.batching import pad_batch, plan_batches
from m3_runtime.encoding import Encoding
from m3_runtime.engines import Engine, RawOutputs, TokenBatch
from m3_runtime.errors import EngineError
from m3_runtime.heads import LexicalRows, colbert_rows, lexical_rows
from m3_runtime.manifest import Head, Manifest
from m3_runtime.options import EncodeOptions
from m3_runtime.sparse import gather_sparse
from m3_runtime.tokenizer import M3Tokenizer, TokenizedTexts


def encode_texts(
    texts: Sequence[str], options: EncodeOptions, manifest: Manifest, tokenizer: M3Tokenizer, engine: Engine
) -> Encoding:
    """Encode S checked texts.

    Raises:
        TextTooLongError: a text is too long and `options` say that this is an error.
        EngineError: the engine refused a batch.
    """
    tokenized = tokenizer.encode_batch(texts, options.max_length, options.on_truncate)
    return encode_tokens(tokenized, options, manifest, engine)


def encode_tokens(tokenized: TokenizedTexts, options: EncodeOptions, manifest: Manifest, engine: Engine) -> Encoding:
    """Encode S texts that are ids already.

    Only ids and results grow with S; what the engine and the heads need at a time is bounded by the token budget.

    Raises:
        EngineError: the engine refused a batch, or returned numbers that are not finite.
    """
    results = _Results(tokenized, options, manifest)
    for indices, batch in _batches(tokenized, options, manifest.tokenizer.pad_id):
        results.take(indices, batch, engine.run(batch, options.heads))
    return results.encoding()


def _batches(
    tokenized: TokenizedTexts, options: EncodeOptions, pad_id: int
) -> Iterator[tuple[NDArray[np.int64], TokenBatch]]:
    for indices in plan_batches(tokenized.lengths, options.token_budget, options.batch_size):
        yield indices, pad_batch([tokenized.ids[i] for i in indices], pad_id)


def _check_finite(raw: RawOutputs) -> None:
    """NaN hides well: it is not above 0, so lexical weights would just be missing."""
    for head, values in zip(Head, (raw.dense_vecs, raw.token_weights, raw.colbert_vecs), strict=True):
        if values is not None and not np.isfinite(values).all():
            raise EngineError(f"the graph's {head.output_name} are not all finite; export the bundle again")


class _Results:
    """Where the batches' results go: places for all S texts, filled batch by batch."""

    def __init__(self, tokenized: TokenizedTexts, options: EncodeOptions, manifest: Manifest) -> None:
        self._tokenized = tokenized
        self._options = options
        self._vocab_size = manifest.geometry.vocab_size
        self._lengths = tokenized.lengths
        texts = len(self._lengths)
        self._dense = np.empty((texts, manifest.geometry.hidden_size), dtype=np.float32)
        self._lexical: list[LexicalRows] = []
        self._order: list[NDArray[np.int64]] = []
        self._colbert: list[NDArray[Any]] = [np.empty((0, 0), np.float32)] * texts

    def take(self, indices: NDArray[np.int64], batch: TokenBatch, raw: RawOutputs) -> None:
        """Put the results of one batch, whose rows are the texts at `indices`, in their places."""
        _check_finite(raw)
        self._order.append(indices)
        if raw.dense_vecs is not None:
            self._dense[indices] = raw.dense_vecs
        if raw.token_weights is not None:
            self._lexical.append(lexical_rows(batch, raw.token_weights, self._vocab_size))
        if raw.colbert_vecs is not None:
            rows = colbert_rows(self._lengths[indices], raw.colbert_vecs, self._options.colbert_dtype.value)
            for index, vectors in zip(indices, rows, strict=True):
                self._colbert[index] = vectors

    def encoding(self) -> Encoding:
        """All results, in input order."""
        heads = self._options.heads
        order = np.concatenate(self._order) if self._order else np.empty(0, np.int64)
        return Encoding(
            dense_vecs=self._dense if Head.DENSE in heads else None,
            sparse=gather_sparse(self._lexical, order, self._vocab_size) if Head.SPARSE in heads else None,
            colbert_vecs=self._colbert if Head.COLBERT in heads else None,
            token_counts=self._lengths,
            truncated=self._tokenized.truncated,
            is_single=False,
        )
