"""What clients hold of something that is scarce: bounded for all together, and for each."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Shares:
    """How much of something each client holds. Belongs to one event loop.

    Attributes:
        most: that all may hold together.
        most_of_one: that one may hold, so that it cannot keep the others out alone.
        total: that all hold.
    """

    most: int
    most_of_one: int
    total: int = field(default=0, init=False)
    _held: Counter[str] = field(default_factory=Counter, init=False)

    def has_room(self, client: str, amount: int) -> bool:
        """Whether a client may have so much more."""
        return self.total + amount <= self.most and self._held[client] + amount <= self.most_of_one

    def take(self, client: str, amount: int) -> bool:
        """Give a client so much more, if there is room for it.

        >>> shares = Shares(most=3, most_of_one=2)
        >>> [shares.take(client, 1) for client in "aaabb"]
        [True, True, False, True, False]
        """
        if not self.has_room(client, amount):
            return False
        self.total += amount
        self._held[client] += amount
        return True

    def give_back(self, client: str, amount: int) -> None:
        """Take back what a client was given."""
        self.total -= amount
        self._held[client] -= amount
        if not self._held[client]:
            del self._held[client]
