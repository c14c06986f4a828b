"""Texts to an `Encoding`: tokenize, batch, run, decode, put back in order."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head, ModelInfo
from m3_runtime.encode.batching import Limits, Ready, Waiting
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.heads import LexicalRows, colbert_rows, lexical_rows
from m3_runtime.encode.options import EncodeOptions
from m3_runtime.encode.sparse import gather_sparse
from m3_runtime.encode.windows import Window, tokenized_windows
from m3_runtime.engines import Engine, RawOutputs, TokenBatch
from m3_runtime.engines.streams import in_streams
from m3_runtime.errors import EngineError
from m3_runtime.tokenizer import M3Tokenizer, TokenizedTexts


def encode_texts(
    texts: Sequence[str], options: EncodeOptions, manifest: ModelInfo, tokenizer: M3Tokenizer, engine: Engine
) -> Encoding:
    """Encode S checked texts. While the engine runs, the next texts are tokenized.

    Raises:
        TextTooLongError: a text is too long and `options` say that this is an error.
        EngineError: the engine refused a batch.
    """
    with closing(tokenized_windows(texts, options, tokenizer)) as windows:
        return _encoded(windows, len(texts), options, manifest, engine)


def encode_tokens(tokenized: TokenizedTexts, options: EncodeOptions, manifest: ModelInfo, engine: Engine) -> Encoding:
    """Encode S texts that are ids already.

    Raises:
        EngineError: the engine refused a batch, or returned numbers that are not finite.
    """
    return _encoded([Window(0, tokenized)], len(tokenized.ids), options, manifest, engine)


def _encoded(
    windows: Iterable[Window], texts: int, options: EncodeOptions, manifest: ModelInfo, engine: Engine
) -> Encoding:
    """Run all windows. Only results grow with the number of texts; batches are bounded by the token budget."""

    def run(ready: Ready) -> tuple[TokenBatch, RawOutputs]:
        tokens = ready.tokens(manifest.tokenizer.pad_id, manifest.pooling)
        return tokens, engine.run(tokens, options.heads)

    results = _Results(texts, options, manifest)
    budget = max(1, options.token_budget // engine.streams)  # of all that run at a time
    limits = Limits(budget, options.batch_size, engine.packed_tokens)
    with closing(in_streams(run, _batches(windows, limits, results), engine.streams)) as done:
        for ready, (tokens, raw) in done:
            results.take(ready.batch.indices, tokens, raw)
    return results.encoding()


def _batches(windows: Iterable[Window], limits: Limits, results: "_Results") -> Iterator[Ready]:
    waiting = Waiting(limits)
    for window in windows:
        results.note(window)
        yield from waiting.add(window.start, window.tokenized.ids)
    yield from waiting.rest()


def _check_finite(raw: RawOutputs) -> None:
    """NaN hides well: it is not above 0, so lexical weights would just be missing."""
    for head, values in zip(Head, (raw.dense_vecs, raw.token_weights, raw.colbert_vecs), strict=True):
        if values is not None and not np.isfinite(values).all():
            raise EngineError(f"the graph's {head.output_name} are not all finite; export the bundle again")


class _Results:
    """Where the batches' results go: places for all S texts, filled batch by batch."""

    def __init__(self, texts: int, options: EncodeOptions, manifest: ModelInfo) -> None:
        self._options = options
        self._vocab_size = manifest.geometry.vocab_size
        self._lengths = np.zeros(texts, dtype=np.int64)
        self._truncated = 0
        self._dense = np.empty((texts, manifest.geometry.hidden_size), dtype=np.float32)
        self._lexical: list[LexicalRows] = []
        self._order: list[NDArray[np.int64]] = []
        self._colbert: list[NDArray[Any]] = [np.empty((0, 0), np.float32)] * texts

    def note(self, window: Window) -> None:
        """Keep what is known of a window's texts before they run."""
        lengths = window.tokenized.lengths
        self._lengths[window.start : window.start + lengths.size] = lengths
        self._truncated += window.tokenized.truncated

    def take(self, indices: NDArray[np.int64], batch: TokenBatch, raw: RawOutputs) -> None:
        """Put the results of one batch, which holds the texts at `indices` row by row, in their places."""
        _check_finite(raw)
        self._order.append(indices)
        if raw.dense_vecs is not None:
            self._dense[indices] = raw.dense_vecs
        if raw.token_weights is not None:
            self._lexical.append(lexical_rows(batch, raw.token_weights, self._vocab_size))
        if raw.colbert_vecs is not None:
            rows = colbert_rows(batch, raw.colbert_vecs, self._options.colbert_dtype.value)
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
            truncated=self._truncated,
            is_single=False,
        )
