"""HTTP/1.1 as uvicorn speaks it, without its patience: clients that send or take nothing do not stay for ever."""

import asyncio
import resource
from collections import defaultdict
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 60.0

_MOST_CONNECTIONS = 4096
"""A connection takes some 20 kB."""
_OTHER_FILES = 256
_MADE_ROOM = 8
"""When there are too many connections, an eighth of an address's goes at once: looking for them takes a while."""


class StrictProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, but closes connections whose headers never arrive whole, and whose answers nobody takes.

    uvicorn waits for ever for the first headers of a connection. A few thousand clients that send a byte now and then
    would hold all connections that the process may have. It also waits for ever for clients that take nothing of an
    answer, which stays in memory until they do.

    There are never more connections than files that the process may open. When there are many, those go that wait for
    their clients, the longest waiting first, of the address that has most of them.
    """

    made_s = 0.0
    _header_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.made_s = self.loop.time()
        if len(self.connections) > most_connections():
            _make_room([other for other in self.connections if isinstance(other, StrictProtocol)])
        self._watch_client()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._watch_client()

    def on_response_complete(self) -> None:
        """See `H11Protocol`: a request has its answer, perhaps before its body has come."""
        super().on_response_complete()
        self._watch_client()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_header_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`: an answer is longer than what the connection takes at once."""
        super().pause_writing()
        self._expect_less_than(self.transport.get_write_buffer_size() + 1)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`: next to nothing of it is left."""
        self._stop_send_timer()
        super().resume_writing()

    def _expect_less_than(self, waiting_bytes: int) -> None:
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes < waiting_bytes:
            self._send_timer = self.loop.call_later(SEND_TIMEOUT_S, self._expect_less_than, left_bytes)
        else:
            self.transport.abort()

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    @property
    def awaits_client(self) -> bool:
        """Whether the client could be gone for ever: no request, or not all of it, has come."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def _watch_client(self) -> None:
        """Time the client while it owes headers, or what is left of a body that was not wanted.

        Admission times the bodies of requests that are being answered. A connection that idles between requests owes
        nothing.
        """
        is_answering = self.cycle is not None and not self.cycle.response_complete
        is_idle = self.cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if is_answering or is_idle:
            self._stop_header_timer()
        elif self._header_timer is None and not self.transport.is_closing():
            self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._give_up)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        self._header_timer = None
        self.transport.close()


def most_connections() -> int:
    """Connections that a process may have: the files it may open, less some for the bundle and the engine."""
    return min(_MOST_CONNECTIONS, max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES))


def raise_file_limit() -> None:
    """Let the process open as many files as the system allows it, up to what it needs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_CONNECTIONS + _OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _make_room(connections: list[StrictProtocol]) -> None:
    """Close some connections that await their client: the oldest of the address that has most of them."""
    by_address: defaultdict[str, list[StrictProtocol]] = defaultdict(list)
    for connection in connections:
        if connection.awaits_client:
            by_address[connection.client[0] if connection.client else ""].append(connection)
    most = max(by_address.values(), key=len, default=[])
    most.sort(key=lambda connection: connection.made_s)
    for connection in most[: max(1, len(most) // _MADE_ROOM)]:
        connection.transport.abort()
