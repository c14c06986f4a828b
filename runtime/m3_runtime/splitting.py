"""The one greedy splitter: neighbouring items in runs that keep within a limit."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class RunLimit:
    """Most items of a run, and most of their sizes together."""

    items: int
    size: int


def greedy_runs(sizes: Iterable[int], limit: RunLimit, *, first: RunLimit | None = None) -> Iterator[range]:
    """Split items of these sizes into runs, each as long as the limit allows; `first` is the first run's, if another.

    An item above the limit is a run of its own.

    >>> list(greedy_runs([3, 3, 50, 1, 1], RunLimit(9, 6)))
    [range(0, 2), range(2, 3), range(3, 5)]
    >>> list(greedy_runs([1] * 7, RunLimit(4, 99), first=RunLimit(1, 99)))
    [range(0, 1), range(1, 5), range(5, 7)]
    """
    current = limit if first is None else first
    start = stop = total = 0
    for size in sizes:
        if stop > start and (stop - start >= current.items or total + size > current.size):
            yield range(start, stop)
            start, total, current = stop, 0, limit
        stop, total = stop + 1, total + size
    if stop > start:
        yield range(start, stop)
