"""Which texts run next. Pure: no clock, no threads, no HTTP.

Texts of many requests wait here, and each batch is taken by three rules.

* A batch holds texts of one kind, as everywhere in the runtime: packed short ones, or longer ones of one length. So a
  long passage never shares a run with short queries. Company comes from any request: the first text is chosen fairly,
  others of its kind join.
* Clients share the engine by tokens (start-time fair queueing, Goyal, Vin and Cheng, SIGCOMM 1996). A client that has
  just come is served before one that has had its share; who sends a thousand passages delays himself.
* A client's own requests come in the order of their arrival, except that a request is passed by smaller ones of the
  next so many tokens as it has itself. So one application's queries do not wait for its own bulk job, and a request's
  wait is bounded when it comes. (Shared turns would let whatever comes later slow down what is nearly done.)

No text starves: the counters that order the texts only grow, and every new text starts at the current count.
"""

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.batching import ENOUGH_TOKENS, Limits
from m3_runtime.engines import is_dense_only

Ids = NDArray[np.int32]

_FEW_STALE = 64
_KEPT_FOR_NEW = 4
"""One part in so many more is kept for clients who have nothing waiting: who floods the server keeps nobody out."""


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait, and how much runs together.

    Attributes:
        max_tokens: most tokens that wait; a quarter more for clients who have nothing waiting yet.
        batch_tokens: most tokens of a batch, except that one text always runs whole. More would gain next to nothing,
            and make everyone else wait longer.
        batch_texts: most texts of a batch.
    """

    max_tokens: int = 65536
    batch_tokens: int = ENOUGH_TOKENS
    batch_texts: int = 64


@dataclass(eq=False)
class QueuedText:
    """One text of a request: its ids (L,), both special tokens included, and its place in the request."""

    job: "Job"
    index: int
    ids: Ids
    is_waiting: bool = True

    @property
    def tokens(self) -> int:
        """L, which is also what it costs."""
        return self.ids.size


@dataclass(eq=False)
class Job:
    """The texts of one request, which need the same heads.

    Attributes:
        client: whose turn its texts take.
        heads: heads that are wanted of every text.
        texts: its texts, in the request's order.
    """

    client: str
    heads: tuple[Head, ...]
    texts: tuple[QueuedText, ...] = field(default=(), init=False)

    @classmethod
    def of(cls, client: str, heads: tuple[Head, ...], ids: Sequence[Ids]) -> "Job":
        """A job of S texts, given as ids."""
        job = cls(client, heads)
        job.texts = tuple(QueuedText(job, index, row) for index, row in enumerate(ids))
        return job

    @property
    def tokens(self) -> int:
        """Tokens of all its texts."""
        return sum(text.tokens for text in self.texts)


_Kind = tuple[int, bool]
"""What texts of a batch have in common. A dense-only run computes less, so it is another computation."""


class TokenQueue:
    """All texts that wait. Not thread-safe: one event loop owns it."""

    def __init__(self, limits: QueueLimits, packed_tokens: int = 0) -> None:
        """Nothing waits yet; texts of at most so many tokens are packed."""
        self.limits = limits
        self._batch = Limits(limits.batch_tokens, limits.batch_texts, packed_tokens)
        self._clients: dict[str, _Client] = {}
        self._kinds: dict[_Kind, dict[QueuedText, None]] = {}
        self._now = 0  # tokens that every waiting client should have had
        self._tokens = self._texts = 0

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._tokens

    @property
    def texts(self) -> int:
        """Texts that wait."""
        return self._texts

    def has_room(self, client: str, tokens: int) -> bool:
        """Whether so many more tokens of a client may wait."""
        most = self.limits.max_tokens
        if not self._held(client):
            most += most // _KEPT_FOR_NEW
        return self._tokens + tokens <= most

    def _held(self, client: str) -> int:
        found = self._clients.get(client)
        return 0 if found is None else found.tokens

    def add(self, job: Job) -> None:
        """Let all texts of a job wait; the caller has asked `has_room`."""
        client = self._clients.setdefault(job.client, _Client())
        if client.texts == 0:
            client.start = max(client.start, self._now)
        client.add(job)
        for text in job.texts:
            self._kinds.setdefault(self._kind(text), {})[text] = None
        self._texts += len(job.texts)
        self._tokens += job.tokens

    def remove(self, job: Job) -> None:
        """Let go of those of a job's texts that still wait: it was cancelled, or is too late."""
        for text in job.texts:
            if text.is_waiting:
                self._leave(text)
        self._forget_idle()

    def take(self, most_tokens: int | None = None) -> tuple[QueuedText, ...]:
        """The texts of the next batch, which wait no longer; none if nothing suitable waits.

        Args:
            most_tokens: take no batch of more tokens than that, and pass over longer texts; None takes what comes.
        """
        found = min(self._heads(most_tokens), key=lambda head: head[0], default=None)
        if found is None:
            return ()
        (start, *_), first = found
        batch = (first, *self._company(first, most_tokens))
        # An ideal server would have advanced all waiting clients alike, and one who comes now. Without this share, ever
        # new clients, who all start at the count, would keep it where it is, and pass the old ones for ever.
        sharing = 1 + sum(client.texts > 0 for client in self._clients.values())
        self._now = max(self._now + sum(text.tokens for text in batch) // sharing, start)
        for text in batch:
            client = self._clients[text.job.client]
            client.serve(text)
            self._leave(text)
        self._forget_idle()
        return batch

    def _heads(self, most_tokens: int | None) -> Iterator[tuple[tuple[int, int, int], QueuedText]]:
        """Each client's next text with its rank: who has had least, then what is shortest, then who came first."""
        for client in self._clients.values():
            if (text := client.next(most_tokens)) is not None:
                yield (client.start, text.tokens, client.arrival), text

    def _company(self, first: QueuedText, most_tokens: int | None) -> Iterator[QueuedText]:
        tokens = self.limits.batch_tokens if most_tokens is None else min(most_tokens, self.limits.batch_tokens)
        tokens -= first.tokens
        others = (text for text in self._kinds[self._kind(first)] if text is not first)
        for text in itertools.islice(others, self.limits.batch_texts - 1):
            tokens -= text.tokens
            if tokens < 0:
                return
            yield text

    def _kind(self, text: QueuedText) -> _Kind:
        return self._batch.kind(text.tokens), is_dense_only(text.job.heads)

    def _leave(self, text: QueuedText) -> None:
        text.is_waiting = False
        kind = self._kind(text)
        alike = self._kinds[kind]
        del alike[text]
        if not alike:
            del self._kinds[kind]
        self._tokens -= text.tokens
        self._texts -= 1
        self._clients[text.job.client].left(text)

    def _forget_idle(self) -> None:
        """A client's past counts only while others wait: an idle server owes nobody, and remembers nobody."""
        if not self._texts:
            self._clients.clear()
            self._now = 0
            return
        idle = [name for name, client in self._clients.items() if not client.texts and client.start <= self._now]
        for name in idle:
            del self._clients[name]


class _Client:
    """One client's waiting texts, and how much it has had."""

    _arrivals = itertools.count()

    def __init__(self) -> None:
        self.start = 0
        self.texts = self.tokens = 0  # that wait
        self.arrival = next(self._arrivals)
        self._served = 0
        self._order: list[tuple[int, int, QueuedText]] = []
        self._numbers = itertools.count()

    def add(self, job: Job) -> None:
        """Rank a job's texts: as if it had come when so many tokens more have been served as it has itself."""
        rank = self._served + job.tokens
        for text in sorted(job.texts, key=lambda text: text.tokens):
            heapq.heappush(self._order, (rank, next(self._numbers), text))
        self.texts += len(job.texts)
        self.tokens += job.tokens

    def next(self, most_tokens: int | None) -> QueuedText | None:
        """The text that is next, among those of at most so many tokens."""
        while self._order and not self._order[0][2].is_waiting:
            heapq.heappop(self._order)
        if not self._order:
            return None
        if most_tokens is None or self._order[0][2].tokens <= most_tokens:
            return self._order[0][2]
        fitting = (entry for entry in self._order if entry[2].is_waiting and entry[2].tokens <= most_tokens)
        found = min(fitting, default=None)
        return None if found is None else found[2]

    def serve(self, text: QueuedText) -> None:
        """Charge what a text costs."""
        self.start += text.tokens
        self._served += text.tokens

    def left(self, text: QueuedText) -> None:
        """A text waits no longer. Its entry stays in the order until it comes up, unless there are many such."""
        self.texts -= 1
        self.tokens -= text.tokens
        if len(self._order) > 2 * self.texts + _FEW_STALE:
            self._order = [entry for entry in self._order if entry[2].is_waiting]
            heapq.heapify(self._order)
