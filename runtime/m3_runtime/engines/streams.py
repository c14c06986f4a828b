"""Streams: several runs at a time that share the threads. How many are worth it, and how they are kept busy.

A run of n tokens by t threads takes about

    weights / bandwidth + n · (shared / t + alone) + wait · log2(t)

seconds: every run reads the weights from memory, most of the work is shared by the threads, some of it is done by one
thread alone, and at each step of the graph threads wait for each other. Streams have fewer threads each, so they lose
less by the last two, but each of them reads the weights for itself. docs/performance.md shows where that leads.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import log2, sqrt
from typing import TypeVar

from m3_runtime.engines.select import AUTO
from m3_runtime.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Parts:
    """What a run's time consists of.

    Attributes:
        weights_bytes: that every run reads.
        core_bytes_per_s: what one core reads from memory. All cores together read as many times that as the square root
            of their number says, which is about what servers of 2 to 96 cores have.
        token_shared_s: seconds of one core for a token, of the work that threads share.
        token_alone_s: seconds for a token, of the work that one thread does alone.
        wait_s: what the threads of a run wait for each other, for every doubling of their number.
    """

    weights_bytes: float
    core_bytes_per_s: float
    token_shared_s: float
    token_alone_s: float
    wait_s: float

    def tokens_per_s(self, tokens: int, threads: int, streams: int) -> float:
        """Throughput of streams that run so many tokens at a time, each with its part of the threads."""
        own = threads / streams
        bytes_per_s = self.core_bytes_per_s * min(own, sqrt(threads) / streams)
        token_s = self.token_shared_s / own + self.token_alone_s
        run_s = self.weights_bytes / bytes_per_s + tokens * token_s + self.wait_s * log2(own)
        return streams * tokens / run_s


ZEN_4 = Parts(302e6, core_bytes_per_s=37e9, token_shared_s=1.62e-3, token_alone_s=0.11e-3, wait_s=2.1e-3)
"""BGE-M3 in int8, fitted to 1 × 16 and 1 × 128 tokens by one core and by two of an AMD Zen 4."""

PASSAGE_TOKENS = 128
_GOOD_ENOUGH = 0.9  # of the most: every stream takes working memory, and makes single runs slower


def best_streams(threads: int, parts: Parts = ZEN_4, tokens: int = PASSAGE_TOKENS) -> int:
    """The fewest streams that come within a tenth of the highest throughput for many texts.

    >>> [best_streams(threads) for threads in (1, 2, 8, 32, 96)]
    [1, 1, 4, 16, 48]

    Args:
        threads: of all streams together.
        parts: what a run's time consists of.
        tokens: that run together in a stream.
    """
    speeds = {n: parts.tokens_per_s(tokens, threads, n) for n in range(1, threads + 1) if threads % n == 0}
    return min(n for n, speed in speeds.items() if speed >= _GOOD_ENOUGH * max(speeds.values()))


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
