"""What a user sees while waiting, on standard error: timed steps, bars over lists, and meters of a running job.

Bars and meters are tqdm's. Where tqdm is not installed (the extras bring it), they show nothing.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")

_METER = "{percentage:3.0f}%|{bar}| {postfix} [{elapsed}, left {remaining}]"
_METER_WITHOUT_END = "{postfix} [{elapsed}]"
_EVERY_S, _EVERY_IN_A_FILE_S = 0.2, 30.0


class Progress:
    """Steps, bars and meters on standard error; nothing when quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._started_s = time.monotonic()

    def say(self, message: str) -> None:
        """Write one line, with the seconds since the start."""
        if not self._quiet:
            print(f"[{time.monotonic() - self._started_s:6.1f} s] {message}", file=sys.stderr, flush=True)  # noqa: T201

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a long step, and say how long it took once it is done."""
        started_s = time.monotonic()
        self.say(f"{title} …")
        yield
        self.say(f"{title}: done in {time.monotonic() - started_s:.1f} s")

    def bar(self, items: Sequence[Item], title: str, unit: str = "text") -> Iterable[Item]:
        """Yield the items, with a bar that shows how many are left; no bar where standard error is no terminal."""
        tqdm = _tqdm()
        if self._quiet or tqdm is None:
            return items
        bar: Iterable[Item] = tqdm(
            items, desc=title, unit=unit, file=sys.stderr, disable=None, leave=False, dynamic_ncols=True
        )
        return bar

    @contextmanager
    def meter(self, total: int | None = None, done: int = 0) -> Iterator["Meter"]:
        """Show how far a job is: a line that is rewritten on a terminal, a line every half minute elsewhere.

        Args:
            total: amount of work, in whatever unit `Meter.advance` counts; None where it is not known.
            done: how much of it was done before.
        """
        tqdm = _tqdm()
        if self._quiet or tqdm is None:
            yield Meter(None)
            return
        is_terminal = sys.stderr.isatty()
        shape = _METER_WITHOUT_END if total is None else _METER
        with tqdm(
            total=total,
            initial=done,
            file=sys.stderr,
            bar_format=shape if is_terminal else shape.replace("|{bar}|", "") + "\n",
            mininterval=_EVERY_S if is_terminal else _EVERY_IN_A_FILE_S,
            miniters=1,
            smoothing=0,  # work comes in bursts: the mean since the start estimates the time left best
        ) as bar:
            yield Meter(bar)


class Meter:
    """How far a job is; see `Progress.meter`."""

    def __init__(self, bar: Any) -> None:
        self._bar, self._started_s = bar, time.monotonic()

    def per_s(self, amount: int) -> float:
        """An amount of this run, in units a second."""
        return amount / max(time.monotonic() - self._started_s, 1e-9)

    def advance(self, amount: int, note: str) -> None:
        """Count some more work as done, and show a note beside it."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(amount)


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
