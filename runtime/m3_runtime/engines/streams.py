"""Streams: several runs at a time that share the threads. How many are worth it, and how they are kept busy."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from m3_runtime.engines.select import AUTO
from m3_runtime.errors import InputError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def best_streams(threads: int) -> int:
    """The fewest streams that share the threads evenly and come near the highest throughput for many passages.

    Streams of two threads come within a tenth of it, by the measured parts of a run's time
    (docs/notes/measurements/performance.md); an odd number of threads cannot be shared by twos.

    >>> [best_streams(threads) for threads in (1, 2, 3, 8, 32, 96)]
    [1, 1, 3, 4, 16, 48]
    """
    if threads == 2:
        return 1
    return threads if threads % 2 else threads // 2


def checked_streams(streams: int | str, threads: int) -> int:
    """A usable number of streams that share the threads; "auto" is `best_streams`.

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


def in_streams(
    run: Callable[[_Item], _Result], items: Iterable[_Item], streams: int
) -> Generator[tuple[_Item, _Result]]:
    """Run all items, several at a time, and yield each with its result in the order in which they came.

    Items are taken as they are needed: one more than there are streams, so that none of these waits for the caller.
    A caller that is interrupted, or goes, does not wait for the runs under way: no engine can be stopped.

    Raises:
        Exception: what `run` raised for the first item that failed; nothing is begun after it.
    """
    if streams == 1:
        for item in items:
            yield item, run(item)
        return
    threads = ThreadPoolExecutor(streams, "m3-stream")
    begun: deque[tuple[_Item, Future[_Result]]] = deque()
    waits = True
    try:
        for item in items:
            begun.append((item, threads.submit(run, item)))
            if len(begun) > streams:
                first, future = begun.popleft()
                yield first, future.result()
        for first, future in begun:
            yield first, future.result()
    except (KeyboardInterrupt, GeneratorExit):
        waits = False
        raise
    finally:
        threads.shutdown(waits, cancel_futures=True)
