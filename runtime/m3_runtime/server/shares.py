"""What clients hold of something that is scarce: bounded for all together, and for each."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Shares:
    """How much of something each client holds. Belongs to one event loop.

    Attributes:
        most: that all may hold together.
        most_of_one: that one may hold, so that it cannot keep the others out alone.
        total: that all hold.
        held: by each client.
    """

    most: int
    most_of_one: int
    total: int = field(default=0, init=False)
    held: Counter[str] = field(default_factory=Counter, init=False)

    def has_room(self, client: str, amount: int) -> bool:
        """Whether a client may have so much more."""
        return self.total + amount <= self.most and self.held[client] + amount <= self.most_of_one

    @contextmanager
    def holding(self, client: str) -> Iterator["Holding"]:
        """What one request of a client holds; all of it is given back when the block ends.

        >>> shares = Shares(most=3, most_of_one=2)
        >>> with shares.holding("a") as a, shares.holding("b") as b:
        ...     [one.take(1) for one in (a, a, a, b, b)]
        [True, True, False, True, False]
        >>> shares.total
        0
        """
        holding = Holding(self, client)
        try:
            yield holding
        finally:
            holding.give_back(holding.amount)
            if not self.held[client]:
                del self.held[client]


@dataclass
class Holding:
    """What one request holds."""

    shares: Shares
    client: str
    amount: int = 0

    def take(self, amount: int) -> bool:
        """Hold so much more, if there is room for it."""
        if not self.shares.has_room(self.client, amount):
            return False
        self.give_back(-amount)
        return True

    def give_back(self, amount: int) -> None:
        """Hold so much less."""
        self.amount -= amount
        self.shares.total -= amount
        self.shares.held[self.client] -= amount
