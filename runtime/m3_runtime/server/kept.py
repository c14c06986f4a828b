"""Vectors that were finished for requests that got no answer, for a client that sends the same request again.

A long request may meet its deadline in its last batch, or its client may give up a moment too early. What has been
computed by then waits here for a while. The same client's next request takes the vectors of all texts that it has in
common with it, and only the others run. What was answered is not kept: this is no cache.

A client finds nothing of another's here, since that would tell what the other has sent.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.encoding import Encoding, EncodingBuilder
from m3_runtime.server.queue import Ids

_Key = tuple[str, frozenset[Head], bytes]
"""Client, heads, and ids of a text: these decide every bit of its vectors."""


@dataclass(frozen=True)
class _Kept:
    """A text's vectors, their bytes, and the event loop's time at which they go."""

    vectors: Encoding
    nbytes: int
    until_s: float


class KeptVectors:
    """Finished vectors without an answer, of bounded size and for a bounded time. Belongs to one event loop."""

    def __init__(self, most_bytes: int, keep_s: float) -> None:
        """Nothing is kept yet; `most_bytes` are kept at most, each for `keep_s` seconds at most."""
        self._most_bytes, self._keep_s = most_bytes, keep_s
        self._texts: dict[_Key, _Kept] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None
        self.nbytes = 0

    def keep(self, client: str, heads: frozenset[Head], texts: Iterable[tuple[Ids, int]], encoding: Encoding) -> None:
        """Keep vectors that had no answer, of texts given as ids and their row in an encoding.

        The oldest make room, but not for more than there can be room for: that is not kept.
        """
        until_s, found = asyncio.get_running_loop().time() + self._keep_s, dict[_Key, _Kept]()
        for ids, row in texts:
            alone = EncodingBuilder(1, heads)
            alone.take(0, encoding, row)
            vectors = alone.encoding()
            found[client, heads, ids.tobytes()] = _Kept(vectors, vectors.nbytes + ids.nbytes, until_s)
        nbytes = sum(kept.nbytes for kept in found.values())
        if nbytes > self._most_bytes:
            return
        for key in found:
            self._forget(key)
        while self._texts and self.nbytes + nbytes > self._most_bytes:
            self._forget(next(iter(self._texts)))
        self._texts |= found
        self.nbytes += nbytes
        if self._timer is None:
            self._forget_old()

    def fill(self, vectors: EncodingBuilder, client: str, heads: frozenset[Head], ids: Sequence[Ids]) -> Sequence[int]:
        """Take what is kept of a request's S texts; the indices of the others, which must run."""
        if not self._texts:
            return range(len(ids))
        keys = [(client, heads, row.tobytes()) for row in ids]
        for index, key in enumerate(keys):
            if key in self._texts:
                vectors.take(index, self._texts[key].vectors, 0)
        missing = [index for index, key in enumerate(keys) if key not in self._texts]
        for key in keys:
            self._forget(key)
        return missing

    def _forget(self, key: _Key) -> None:
        if (kept := self._texts.pop(key, None)) is not None:
            self.nbytes -= kept.nbytes

    def _forget_old(self) -> None:
        """Forget what has been kept long enough, and come back for the rest."""
        loop, self._timer = asyncio.get_running_loop(), None
        for key, kept in list(self._texts.items()):
            if kept.until_s > loop.time():
                self._timer = loop.call_at(kept.until_s, self._forget_old)
                return
            self._forget(key)
