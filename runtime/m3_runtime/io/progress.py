"""What a user sees while waiting, on standard error: timed steps, bars over lists, and meters of a running job.

Bars, and meters on a terminal, are tqdm's; where it is not installed (the extras bring it), they show nothing. Where
standard error is a file or a pipe, bars show nothing, and a meter writes a plain line now and then.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

Item = TypeVar("Item")

_METER = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}, left {remaining}]"
_METER_WITHOUT_END = "{desc} [{elapsed}]"
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
        if self._quiet:
            yield Meter()
        elif not sys.stderr.isatty():
            lines = _Lines(total, done)
            try:
                yield Meter(lines.show)
            finally:
                lines.write()
        elif (tqdm := _tqdm()) is None:
            yield Meter()
        else:
            with tqdm(
                total=total,
                initial=done,
                file=sys.stderr,
                bar_format=_METER_WITHOUT_END if total is None else _METER,
                mininterval=_EVERY_S,
                miniters=1,
                smoothing=0,  # work comes in bursts: the mean since the start estimates the time left best
            ) as bar:
                yield Meter(partial(_show, bar))


class Meter:
    """How far a job is; see `Progress.meter`."""

    def __init__(self, show: Callable[[int, str], None] | None = None) -> None:
        self._show, self._started_s = show, time.monotonic()

    def per_s(self, amount: int) -> float:
        """An amount of this run, in units a second."""
        return amount / max(time.monotonic() - self._started_s, 1e-9)

    def advance(self, amount: int, note: str) -> None:
        """Count some more work as done, and show a note beside it."""
        if self._show is not None:
            self._show(amount, note)


class _Lines:
    """A meter's lines in a file: one every half minute, and one at the end."""

    def __init__(self, total: int | None, done: int) -> None:
        self._total, self._begun, self._done, self._note = total, done, done, ""
        self._started_s = self._written_s = time.monotonic()

    def show(self, amount: int, note: str) -> None:
        self._done, self._note = self._done + amount, note
        if time.monotonic() - self._written_s >= _EVERY_IN_A_FILE_S:
            self.write()

    def write(self) -> None:
        """Write where the job is; nothing if nothing was done since the last line."""
        if not self._note:
            return
        note, self._note, self._written_s = self._note, "", time.monotonic()
        elapsed_s = self._written_s - self._started_s
        if self._total is None:
            line = f"{note} [{_clock(elapsed_s)}]"
        else:
            left_s = elapsed_s * (self._total - self._done) / max(self._done - self._begun, 1)
            share = 100 * self._done / max(self._total, 1)
            line = f"{share:3.0f}% {note} [{_clock(elapsed_s)}, left {_clock(left_s)}]"
        print(line, file=sys.stderr, flush=True)  # noqa: T201


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes:02d}:{rest:02d}"


def _show(bar: Any, amount: int, note: str) -> None:
    bar.set_description_str(note, refresh=False)
    bar.update(amount)


def _tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm
