"""Texts, or ids, to an `Encoding`: tokenize, batch, run, decode, put back in order.

Texts go window by window: while one window is worked on, the next is tokenized in another thread. What a window holds
is a matter of speed alone. Texts that may run together find each other across windows (`batching.Waiting`).
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from m3_runtime.bundle.manifest import ModelInfo
from m3_runtime.encode.batching import BatchLimits, Ready, Waiting
from m3_runtime.encode.encoding import Encoding, EncodingBuilder
from m3_runtime.encode.options import EncodeOptions
from m3_runtime.encode.outputs import batch_encoding
from m3_runtime.engines import Engine, RawOutputs, TokenBatch
from m3_runtime.engines.streams import in_streams
from m3_runtime.errors import TextTooLongError
from m3_runtime.splitting import RunLimit, greedy_runs
from m3_runtime.tokenizer import M3Tokenizer, TokenizedTexts

# A window is large enough to fill batches of many lengths, and small next to what a caller holds in memory anyway. The
# first one is small, since nothing runs meanwhile. Items are texts, sizes characters.
_FIRST_WINDOW = RunLimit(256, 250_000)
_WINDOW = RunLimit(2048, 2_000_000)

_Window = TypeVar("_Window")

BatchObserver = Callable[[TokenBatch], None]
"""Called with every batch before it runs, in the thread that runs it."""


def encode_texts(
    texts: Sequence[str], options: EncodeOptions, manifest: ModelInfo, tokenizer: M3Tokenizer, engine: Engine
) -> Encoding:
    """Encode S checked texts. While the engine runs, the next texts are tokenized.

    Raises:
        TextTooLongError: a text is too long and `options` say that this is an error.
        EngineError: the engine refused a batch.
    """

    def tokenize(part: range) -> TokenizedTexts:
        try:
            return tokenizer.encode_batch(texts[part.start : part.stop], options.max_length, options.on_truncate)
        except TextTooLongError as error:
            raise error.of_part(part.start) from error

    with closing(windows_ahead(map(len, texts), tokenize)) as windows:
        return encode_windows(windows, len(texts), options, manifest, engine)


def encode_tokens(
    tokenized: TokenizedTexts,
    options: EncodeOptions,
    manifest: ModelInfo,
    engine: Engine,
    on_batch: BatchObserver | None = None,
) -> Encoding:
    """Encode S texts that are ids already.

    Raises:
        EngineError: the engine refused a batch, or returned numbers that are not finite.
    """
    return encode_windows([tokenized], len(tokenized.ids), options, manifest, engine, on_batch)


def encode_windows(
    windows: Iterable[TokenizedTexts],
    texts: int,
    options: EncodeOptions,
    manifest: ModelInfo,
    engine: Engine,
    on_batch: BatchObserver | None = None,
) -> Encoding:
    """Encode the S = `texts` texts of all windows, in their order.

    Only results grow with the number of texts; batches are bounded by the token budget.

    Raises:
        EngineError: the engine refused a batch, or returned numbers that are not finite.
    """

    def run(ready: Ready) -> tuple[TokenBatch, RawOutputs]:
        batch = ready.tokens(manifest.tokenizer.pad_id, manifest.pooling)
        if on_batch is not None:
            on_batch(batch)
        return batch, engine.run(batch, options.heads)

    losses: Counter[str] = Counter()

    def waiting_batches() -> Iterator[Ready]:
        waiting, start = Waiting(limits), 0
        for tokenized in windows:
            losses.update(truncated=tokenized.truncated, out_of_vocabulary=tokenized.out_of_vocabulary)
            yield from waiting.add(start, tokenized.ids)
            start += len(tokenized.ids)
        yield from waiting.rest()

    geometry = manifest.geometry
    builder = EncodingBuilder(texts, options.heads, geometry.hidden_size, geometry.vocab_size)
    budget = max(1, options.token_budget // engine.streams)  # of all that run at a time
    limits = BatchLimits(budget, options.batch_size, engine.packed_tokens)
    with closing(in_streams(run, waiting_batches(), engine.streams)) as done:
        for ready, (batch, raw) in done:
            found = batch_encoding(ready, batch, raw, options, manifest)
            for row, index in enumerate(ready.batch.indices.tolist()):
                builder.take(index, found, row)
    return builder.encoding(**losses)


def windows_ahead(sizes: Iterable[int], tokenize: Callable[[range], _Window]) -> Generator[_Window]:
    """Yield windows of texts as ids, in order.

    One window is tokenized ahead, not more, so ids in memory do not grow with the number of texts. Sizes are the texts'
    characters; `tokenize` makes the window of the texts of these indices, and is called from another thread.

    Raises:
        Exception: what `tokenize` raised.
    """
    parts = list(greedy_runs(sizes, _WINDOW, first=_FIRST_WINDOW))
    if len(parts) < 2:
        yield from map(tokenize, parts)
        return
    with ThreadPoolExecutor(1, "m3-ahead") as ahead:
        following = ahead.submit(tokenize, parts[0])
        for part in parts[1:]:
            window, following = following.result(), ahead.submit(tokenize, part)
            yield window
        yield following.result()
