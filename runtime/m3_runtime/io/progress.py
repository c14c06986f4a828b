"""What a user sees while waiting, on standard error: timed steps, bars over lists, and meters of a running job.

Bars are tqdm's. Where it is not installed (the extras bring it), or standard error is a file or a pipe, a plain line
now and then stands for them. A meter rewrites its line on a terminal, and writes such lines elsewhere.
"""

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

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
        """Yield the items, with a bar that shows how many are left; a line every half minute where there is no bar."""
        if self._quiet:
            return items
        try:
            from tqdm import tqdm
        except ImportError:
            return self._with_lines(items, title, unit)
        if not sys.stderr.isatty():
            return self._with_lines(items, title, unit)
        bar: Iterable[Item] = tqdm(items, desc=title, unit=unit, file=sys.stderr, leave=False, dynamic_ncols=True)
        return bar

    def _with_lines(self, items: Sequence[Item], title: str, unit: str) -> Iterator[Item]:
        said_s, parts = time.monotonic(), f" {unit}" if unit.startswith("×") else ""
        for done, item in enumerate(items):
            if time.monotonic() - said_s >= _EVERY_IN_A_FILE_S:
                said_s = time.monotonic()
                self.say(f"{title}: {done} of {len(items)}{parts}")
            yield item

    @contextmanager
    def meter(self, total: int | None = None, done: int = 0) -> Iterator["Meter"]:
        """Show how far a job is: a line that is rewritten on a terminal, a line every half minute elsewhere.

        `total` is the amount of work, None where it is not known, and `done` what of it was done before, in whatever
        unit `Meter.advance` counts.
        """
        meter = Meter(total, done, is_shown=not self._quiet)
        try:
            yield meter
        finally:
            meter.write(end="\n")


class Meter:
    """How far a job is; see `Progress.meter`."""

    def __init__(self, total: int | None, done: int, *, is_shown: bool) -> None:
        self._total, self._begun, self._done, self._note, self._is_shown = total, done, done, "", is_shown
        self._is_rewritten = sys.stderr.isatty()
        self._started_s = self._written_s = time.monotonic()

    def per_s(self, amount: int) -> float:
        """An amount of this run, in units a second."""
        return amount / max(time.monotonic() - self._started_s, 1e-9)

    def advance(self, amount: int, note: str) -> None:
        """Count some more work as done, and show a note with it."""
        self._done, self._note = self._done + amount, note
        if time.monotonic() - self._written_s >= (_EVERY_S if self._is_rewritten else _EVERY_IN_A_FILE_S):
            self.write(end="" if self._is_rewritten else "\n")

    def write(self, end: str) -> None:
        """Write where the job is; nothing if nothing was done, or a file has the line already."""
        if not (self._is_shown and self._note):
            return
        self._written_s = time.monotonic()
        elapsed_s = self._written_s - self._started_s
        if self._total is None:
            line = f"{self._note} [{_clock(elapsed_s)}]"
        else:
            left_s = elapsed_s * (self._total - self._done) / max(self._done - self._begun, 1)
            share = 100 * self._done / max(self._total, 1)
            line = f"{share:3.0f}% {self._note} [{_clock(elapsed_s)}, left {_clock(left_s)}]"
        if self._is_rewritten:
            width = shutil.get_terminal_size().columns - 1
            line = "\r" + line[:width].ljust(width)
        else:
            self._note = ""
        print(line, end=end, file=sys.stderr, flush=True)  # noqa: T201


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes:02d}:{rest:02d}"
