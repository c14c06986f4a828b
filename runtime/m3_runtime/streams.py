"""Streams: several runs at a time that share the threads. How many are worth it, and how they are kept busy.

A run of n tokens by t threads takes about

    weights / bandwidth + n · (work / (t · speed) + alone) + wait · log2(t)

seconds: weights are read from memory once, products are split among the threads, something of every token is left to
one thread, and at each step of the graph threads wait for each other. Streams split the threads, so that they lose less
by the last two; but every stream reads the weights for itself. docs/performance.md shows where that leads.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import log2
from typing import TypeVar

from m3_runtime.errors import InputError

AUTO = "auto"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Parts:
    """What a run's time consists of.

    Attributes:
        weights_bytes: read by every run.
        core_bytes_per_s: what one core reads from memory.
        most_bytes_per_s: what all cores read together; None for as many times `core_bytes_per_s` as there are cores,
            up to eight.
        token_core_s: seconds of one core for what is split among threads, for a token.
        token_alone_s: seconds for what is not split, for a token.
        wait_s: what the threads of a run wait for each other, for every doubling of their number.
    """

    weights_bytes: float
    core_bytes_per_s: float
    most_bytes_per_s: float
    token_core_s: float
    token_alone_s: float
    wait_s: float

    def tokens_per_s(self, tokens: int, threads: int, streams: int) -> float:
        """Throughput of streams that each run so many tokens at a time, each with its part of the threads."""
        own = threads / streams
        bytes_per_s = min(own * self.core_bytes_per_s, self.most_bytes_per_s / streams)
        run_s = (
            self.weights_bytes / bytes_per_s
            + tokens * (self.token_core_s / own + self.token_alone_s)
            + self.wait_s * log2(own)
        )
        return streams * tokens / run_s


# BGE-M3 in int8 on two cores of AMD Zen 4 (docs/performance.md).
MEASURED = Parts(
    weights_bytes=302e6,
    core_bytes_per_s=25e9,
    most_bytes_per_s=34e9,
    token_core_s=1.6e-3,
    token_alone_s=0.05e-3,
    wait_s=1.6e-3,
)
BATCH_TOKENS = 2048  # of a batch in a large corpus, say 16 passages of 128
_WORTH = 1.03  # more streams take more memory, so they must gain something


def best_streams(threads: int, parts: Parts = MEASURED, tokens: int = BATCH_TOKENS) -> int:
    """How many streams make the most of some threads when there are many texts; the fewest of equally good ones.

    Args:
        threads: of all streams together.
        parts: what a run's time consists of.
        tokens: that run together in a stream.
    """
    best = 1
    for streams in range(2, threads + 1):
        if threads % streams == 0:
            gained = parts.tokens_per_s(tokens, threads, streams) / parts.tokens_per_s(tokens, threads, best)
            best = streams if gained > _WORTH else best
    return best


def checked_streams(streams: int | str, threads: int) -> int:
    """A usable number of streams.

    Args:
        streams: a number, or "auto" for `best_streams`.
        threads: that they share.

    Raises:
        InputError: neither "auto" nor an integer from 1 to `threads`.
    """
    if streams == AUTO:
        return best_streams(threads)
    if isinstance(streams, bool) or not isinstance(streams, int):
        raise InputError(f"streams must be an integer or 'auto', got {streams!r}")
    if not 1 <= streams <= threads:
        raise InputError(f"streams must be from 1 to the number of threads, which is {threads}, got {streams}")
    return streams


def in_streams(run: Callable[[Item], Result], items: Iterable[Item], streams: int) -> Generator[tuple[Item, Result]]:
    """Run all items, several at a time, and yield each with its result in the order in which they came.

    Items are taken as they are needed: one more than there are streams, so that none of these waits for the caller.

    Raises:
        Exception: what `run` raised for the first item that failed; nothing is begun after it.
    """
    if streams == 1:
        for item in items:
            yield item, run(item)
        return
    threads = ThreadPoolExecutor(streams, "m3-stream")
    begun: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            begun.append((item, threads.submit(run, item)))
            if len(begun) > streams:
                first, future = begun.popleft()
                yield first, future.result()
        for first, future in begun:
            yield first, future.result()
    finally:
        threads.shutdown(cancel_futures=True)
