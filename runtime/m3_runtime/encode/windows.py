"""Texts to ids, a window at a time: while one window is worked on, the next is tokenized in another thread.

What a window holds is a matter of speed alone. Texts that may run together find each other across windows
(`batching.Waiting`).
"""

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from m3_runtime.encode.options import EncodeOptions
from m3_runtime.errors import TextTooLongError
from m3_runtime.splitting import RunLimit, greedy_runs
from m3_runtime.tokenizer import M3Tokenizer, TokenizedTexts

# A window is large enough to fill batches of many lengths, and small next to what a caller holds in memory anyway. The
# first one is small, since nothing runs meanwhile. Items are texts, sizes characters.
_FIRST_WINDOW = RunLimit(256, 250_000)
_WINDOW = RunLimit(2048, 2_000_000)


@dataclass(frozen=True)
class Window:
    """Some neighbouring texts as ids; `start` is the index of the first."""

    start: int
    tokenized: TokenizedTexts


def tokenized_windows(texts: Sequence[str], options: EncodeOptions, tokenizer: M3Tokenizer) -> Generator[Window]:
    """Yield all texts as ids, in order.

    One window is tokenized ahead, not more, so ids in memory do not grow with the number of texts.

    Raises:
        TextTooLongError: a text is too long and `options` say that this is an error; its index is among all texts.
    """
    parts = list(greedy_runs(map(len, texts), _WINDOW, first=_FIRST_WINDOW))
    if len(parts) < 2:
        yield from (_window(part, texts, options, tokenizer) for part in parts)
        return
    with ThreadPoolExecutor(1, "m3-tokenizer") as ahead:
        following = ahead.submit(_window, parts[0], texts, options, tokenizer)
        for part in parts[1:]:
            window, following = following.result(), ahead.submit(_window, part, texts, options, tokenizer)
            yield window
        yield following.result()


def _window(part: range, texts: Sequence[str], options: EncodeOptions, tokenizer: M3Tokenizer) -> Window:
    try:
        tokenized = tokenizer.encode_batch(texts[part.start : part.stop], options.max_length, options.on_truncate)
    except TextTooLongError as error:
        index = part.start + error.index
        raise TextTooLongError(f"text {index}", index, error.tokens, error.max_length) from error
    return Window(part.start, tokenized)
