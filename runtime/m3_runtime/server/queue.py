"""What waits: which texts run next, and how long a new request would take. Pure: no clock, no threads, no HTTP.

Texts of many requests wait here, and each batch is taken by three rules.

* A batch holds texts of one kind, as everywhere in the runtime: packed short ones, or longer ones of one length. So a
  long passage never shares a run with short queries. They come from any request: the first text is chosen fairly,
  others of its kind join.
* Clients share the engine by tokens (start-time fair queueing, Goyal, Vin and Cheng, SIGCOMM 1996). A client that has
  just arrived is served before one that has had its share; a client that sends a thousand passages delays only itself.
* A client's requests are served first come, first served, except that a later request may overtake an earlier one if
  it is smaller; at most as many tokens may overtake a request as it holds itself. So an application's queries do not
  wait for its own bulk job, and a request's wait is bounded when it arrives. (Shared turns would let later requests
  slow down one that is nearly done.)

So a request may be as long as the queue: it is split into batches here, and a query that arrives meanwhile runs after
the batch in progress.

No text starves: the counters that order the texts only grow, and every new text starts at the current count.
"""

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.batching import ENOUGH_TOKENS, BatchLimits
from m3_runtime.engines import is_pooled_only

Ids = NDArray[np.int32]

_FEW_STALE = 64
_KEPT_FOR_NEW = 4
"""A fourth more room is kept for clients that have nothing waiting: a client that floods the server blocks nobody."""

_ESTIMATE_MEMORY_S = 10.0
_FEW_REQUESTS = 8
"""With many more requests than that under way the estimate allows for twice the time, with one or two little more."""


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait, and how much runs together.

    Attributes:
        max_tokens: most tokens that wait, a quarter more for clients that have nothing waiting yet, and most of one
            request. OpenAI's longest requests have 300 000, and three of them fit; an id takes 4 bytes.
        batch_tokens: most tokens of a batch, except that one text always runs whole. More would gain next to nothing,
            and make everyone else wait longer.
        batch_texts: most texts of a batch.
    """

    max_tokens: int = 2**20
    batch_tokens: int = ENOUGH_TOKENS
    batch_texts: int = 64


@dataclass(eq=False, slots=True)
class QueuedText:
    """One text of a request, or a reranker's pair: its ids (L,), special tokens included, and its index in it."""

    request: "QueuedRequest"
    index: int
    ids: Ids
    is_waiting: bool = True

    @property
    def tokens(self) -> int:
        """L, which is also what it costs."""
        return self.ids.size


class QueuedRequest:
    """The texts of one request that are to run, and need the same heads.

    Attributes:
        client: whose share its texts count against.
        heads: heads that are wanted of every text.
        texts: its texts, in the request's order.
        tokens: of all its texts.
        waiting: how many of its texts wait.
    """

    def __init__(
        self, client: str, heads: frozenset[Head], ids: Sequence[Ids], indices: Iterable[int] | None = None
    ) -> None:
        """A request of S texts, given as ids; of these only some are to run if `indices` says so."""
        chosen = range(len(ids)) if indices is None else indices
        self.client, self.heads, self.waiting = client, heads, 0
        self.texts = tuple(QueuedText(self, index, ids[index]) for index in chosen)
        self.tokens = sum(text.tokens for text in self.texts)


_Kind = tuple[int, bool, bool]
"""What texts of a batch have in common. A reranker's pairs are another model's, and a run for the pooled token alone
computes less, so it is another computation."""


class TokenQueue:
    """All texts that wait. Not thread-safe: one event loop owns it."""

    def __init__(self, limits: QueueLimits, packed_tokens: int = 0, packed_pair_tokens: int = 0) -> None:
        """Nothing waits yet; texts, and a reranker's pairs, of at most so many tokens are packed."""
        self.limits = limits
        packed = {False: packed_tokens, True: packed_pair_tokens}
        self._batches = {
            is_pair: BatchLimits(limits.batch_tokens, limits.batch_texts, most) for is_pair, most in packed.items()
        }
        self._clients: dict[str, _Client] = {}
        self._kinds: dict[_Kind, dict[QueuedText, None]] = {}
        self._now = 0  # tokens that every waiting client should have had
        self.tokens = self.texts = 0  # that wait

    def has_room(self, client: str, tokens: int) -> bool:
        """Whether so many more tokens of a client may wait."""
        most, known = self.limits.max_tokens, self._clients.get(client)
        if known is None or not known.tokens:
            most += most // _KEPT_FOR_NEW
        return self.tokens + tokens <= most

    def tokens_before(self, client: str, tokens: int) -> int:
        """Tokens that are done before a new request of a client is, in all likelihood, its own included.

        Of its client's requests those that it does not overtake. Clients share the engine evenly: of another client's
        requests no more runs meanwhile than of the client's own.

        A batch takes texts of one kind from all requests, so most requests are partly done, and on average a request
        takes the time for all their sizes, not for what is left of them (Little's law).
        """
        known = self._clients.get(client)
        own = tokens + (0 if known is None else known.tokens_before(tokens))
        return own + sum(min(other.requested, own) for name, other in self._clients.items() if name != client)

    def add(self, request: QueuedRequest) -> None:
        """Let all texts of a request wait; the caller has asked `has_room`."""
        client = self._clients.setdefault(request.client, _Client())
        if client.texts == 0:
            client.start = max(client.start, self._now)
        client.add(request)
        for text in request.texts:
            self._kinds.setdefault(self._kind(text), {})[text] = None
        self.texts += len(request.texts)
        self.tokens += request.tokens

    def remove(self, request: QueuedRequest) -> None:
        """Let go of those of a request's texts that still wait: it was cancelled, or is too late."""
        for text in request.texts:
            if text.is_waiting:
                self._leave(text)
        self._forget_idle()

    def take(self, most_tokens: int | None = None) -> tuple[QueuedText, ...]:
        """The texts of the next batch, which wait no longer; none if nothing suitable waits.

        Args:
            most_tokens: take no batch of more tokens than that, and skip longer texts; None takes whatever is next.
        """
        # the client that has had least, then the shortest text, then the client that arrived first
        ranked = (
            ((client.start, text.tokens, client.arrival), text)
            for client in self._clients.values()
            if (text := client.next(most_tokens)) is not None
        )
        found = min(ranked, key=lambda entry: entry[0], default=None)
        if found is None:
            return ()
        (start, *_), first = found
        batch = (first, *self._joining(first, most_tokens))
        # An ideal server would have advanced all waiting clients alike, and one that arrives now. Without this share,
        # ever new clients, which all start at the count, would keep it where it is, and pass the old ones for ever.
        sharing = 1 + sum(client.texts > 0 for client in self._clients.values())
        self._now = max(self._now + sum(text.tokens for text in batch) // sharing, start)
        for text in batch:
            self._clients[text.request.client].serve(text)
            self._leave(text)
        self._forget_idle()
        return batch

    def _joining(self, first: QueuedText, most_tokens: int | None) -> Iterator[QueuedText]:
        """Texts that run together with the first one."""
        tokens = self.limits.batch_tokens if most_tokens is None else min(most_tokens, self.limits.batch_tokens)
        tokens -= first.tokens
        others = (text for text in self._kinds[self._kind(first)] if text is not first)
        for text in itertools.islice(others, self.limits.batch_texts - 1):
            tokens -= text.tokens
            if tokens < 0:
                return
            yield text

    def _kind(self, text: QueuedText) -> _Kind:
        heads = text.request.heads
        is_pair = Head.SCORE in heads
        return self._batches[is_pair].kind(text.tokens), is_pair, is_pooled_only(heads)

    def _leave(self, text: QueuedText) -> None:
        text.is_waiting = False
        kind = self._kind(text)
        alike = self._kinds[kind]
        del alike[text]
        if not alike:
            del self._kinds[kind]
        self.tokens -= text.tokens
        self.texts -= 1
        self._clients[text.request.client].left(text)

    def _forget_idle(self) -> None:
        """A client's past counts only while others wait: an idle server owes nobody, and remembers nobody."""
        if not self.texts:
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
        self.requested = 0  # tokens of all requests that wait, whether or not some of their texts are done
        self.arrival = next(self._arrivals)
        self._served = 0
        self._ranks: dict[QueuedRequest, int] = {}
        self._order: list[tuple[int, int, QueuedText]] = []
        self._numbers = itertools.count()

    def add(self, request: QueuedRequest) -> None:
        """Rank a request's texts: as if it had arrived when as many more tokens have been served as it holds."""
        rank = self._ranks[request] = self._served + request.tokens
        for text in sorted(request.texts, key=lambda text: text.tokens):
            heapq.heappush(self._order, (rank, next(self._numbers), text))
        request.waiting = len(request.texts)
        self.requested += request.tokens
        self.texts += len(request.texts)
        self.tokens += request.tokens

    def tokens_before(self, tokens: int) -> int:
        """Tokens of the requests that a new one of so many tokens does not overtake."""
        rank = self._served + tokens
        return sum(request.tokens for request, other in self._ranks.items() if other <= rank)

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
        text.request.waiting -= 1
        if not text.request.waiting:
            self.requested -= text.request.tokens
            del self._ranks[text.request]
        if len(self._order) > 2 * self.texts + _FEW_STALE:
            self._order = [entry for entry in self._order if entry[2].is_waiting]
            heapq.heapify(self._order)


class ThroughputEstimate:
    """How many tokens a second the engine works off."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0

    def ran(self, tokens: int, busy_s: float) -> None:
        """A run has ended, so many seconds after it began or, if that was later, after the run before it ended."""
        kept = math.exp(-busy_s / _ESTIMATE_MEMORY_S)
        self._tokens = kept * self._tokens + tokens
        self._seconds = kept * self._seconds + busy_s

    def seconds(self, tokens: int) -> float:
        """The engine's time for so many tokens, by its last ten busy seconds or so; 0 before anything has run."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0

    def most_s(self, tokens: int, requests: int) -> float:
        """Seconds until so many tokens are done beside so many requests, in all likelihood.

        Some requests take up to twice as long as their tokens would, as their kinds come up late.
        """
        return (1 + requests / (requests + _FEW_REQUESTS)) * self.seconds(tokens)
