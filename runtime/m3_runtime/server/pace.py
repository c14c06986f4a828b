"""How long a request would take that came now. Pure: no clock, no threads."""

import math
from collections import Counter

_MEMORY_S = 10.0

_FEW = 8
"""With many more requests than that under way twice the time is allowed for, with one or two little more than it."""


class Pace:
    """What is under way for whom, and how fast the engine works it off."""

    def __init__(self) -> None:
        self._under_way: Counter[str] = Counter()
        self._requests = 0
        self._tokens = self._seconds = 0.0

    def begin(self, client: str, tokens: int) -> None:
        """A request of so many tokens has been taken."""
        self._under_way[client] += tokens
        self._requests += 1

    def end(self, client: str, tokens: int) -> None:
        """A request has its answer, or needs none any more."""
        self._under_way[client] -= tokens
        self._requests -= 1
        if not self._under_way[client]:
            del self._under_way[client]

    def ran(self, tokens: int, busy_s: float) -> None:
        """A run has ended, so many seconds after it began or, if that was later, after the run before it ended."""
        kept = math.exp(-busy_s / _MEMORY_S)
        self._tokens = kept * self._tokens + tokens
        self._seconds = kept * self._seconds + busy_s

    def seconds(self, tokens: int) -> float:
        """The engine's time for so many tokens, by its last ten busy seconds or so; 0 as long as nothing has run."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0

    def most_s(self, client: str, tokens: int) -> float:
        """Seconds in which a client's request of so many tokens is done, in all likelihood.

        A batch takes texts of one kind from all requests, so most of those under way are partly done, and on average
        a request takes the time for all their sizes, not for what is left of them (Little's law). Some take up to twice
        as long, as their kinds come up late. Clients share the engine evenly: of another's requests no more runs
        meanwhile than of the client's own.
        """
        own = self._under_way[client] + tokens
        others = sum(min(size, own) for name, size in self._under_way.items() if name != client)
        return (1 + self._requests / (self._requests + _FEW)) * self.seconds(own + others)
