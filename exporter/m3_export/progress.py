"""What the user sees while waiting: numbered steps with times, and bars for loops. All of it on stderr."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Progress:
    """Steps and bars on stderr, or nothing when `quiet`."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._started_s = time.monotonic()

    def say(self, message: str) -> None:
        """One line, with the seconds since the start."""
        if not self._quiet:
            print(f"[{time.monotonic() - self._started_s:6.1f} s] {message}", file=sys.stderr, flush=True)  # noqa: T201

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a long step, and how long it took once it is done."""
        started_s = time.monotonic()
        self.say(f"{title} …")
        yield
        self.say(f"{title}: done in {time.monotonic() - started_s:.1f} s")

    def bar(self, items: Sequence[T], title: str, unit: str = "text") -> Iterable[T]:
        """The items, with a bar that knows how many are left."""
        return tqdm(
            items, desc=title, unit=unit, file=sys.stderr, disable=self._quiet or None, leave=False, dynamic_ncols=True
        )
