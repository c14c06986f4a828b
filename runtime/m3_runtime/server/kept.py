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


@dataclass(eq=False)
class _Remains:
    """What is left of one request: an encoding, which of its rows nobody has taken yet, bytes, and when it goes."""

    encoding: Encoding
    rows: dict[_Key, int]
    nbytes: int
    timer: asyncio.TimerHandle | None = None


class KeptVectors:
    """Finished vectors without an answer, of bounded size and for a bounded time. Belongs to one event loop."""

    def __init__(self, most_bytes: int, keep_s: float) -> None:
        """Nothing is kept yet; `most_bytes` are kept at most, each for `keep_s` seconds at most."""
        self._most_bytes = most_bytes
        self._keep_s = keep_s
        self._remains: dict[_Remains, None] = {}  # the oldest first
        self._places: dict[_Key, _Remains] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(remains.nbytes for remains in self._remains)

    def keep(self, client: str, heads: frozenset[Head], texts: Iterable[tuple[Ids, int]], encoding: Encoding) -> None:
        """Keep vectors that had no answer; the oldest make room.

        Args:
            client: whose they are.
            heads: that were asked for.
            texts: ids, and their row in the encoding.
            encoding: the vectors, of at least these texts and heads.
        """
        rows = {(client, heads, ids.tobytes()): row for ids, row in texts}
        remains = _Remains(encoding, rows, encoding.nbytes + sum(len(ids) for _, _, ids in rows))
        if not rows or remains.nbytes > self._most_bytes:
            return
        while self.nbytes + remains.nbytes > self._most_bytes:
            self._forget(next(iter(self._remains)))
        self._remains[remains] = None
        self._places.update(dict.fromkeys(rows, remains))
        remains.timer = asyncio.get_running_loop().call_later(self._keep_s, self._forget, remains)

    def fill(self, vectors: EncodingBuilder, client: str, heads: frozenset[Head], ids: Sequence[Ids]) -> Sequence[int]:
        """Take what is kept of a request's S texts; the indices of the others, which must run."""
        if not self._places:
            return range(len(ids))
        missing, taken = [], {}
        for index, row in enumerate(ids):
            key = client, heads, row.tobytes()
            if (remains := self._places.get(key)) is None:
                missing.append(index)
            else:
                vectors.take(index, remains.encoding, remains.rows[key])
                taken[key] = remains
        for key, remains in taken.items():
            del self._places[key], remains.rows[key]
            if not remains.rows:
                self._forget(remains)
        return missing

    def _forget(self, remains: _Remains) -> None:
        del self._remains[remains]
        if remains.timer is not None:
            remains.timer.cancel()  # it would hold the vectors until then
        for key in remains.rows:
            if self._places.get(key) is remains:
                del self._places[key]
