"""uvicorn's HTTP/1.1, with limits on how long a client may take over his headers, and over our answers."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 60.0


class PatientProtocol(H11Protocol):
    """Closes connections whose next request has begun, or never begins, and whose headers do not come to an end.

    uvicorn waits for ever for the first headers of a connection. A few thousand clients that send a byte now and then
    would hold all connections that the process may have. It waits for ever, too, for clients that take nothing of
    an answer, which lies in memory until they do. Those are cut off.
    """

    _opening: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._forget()
        self._sent()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`: an answer is longer than what the connection takes at once."""
        super().pause_writing()
        self._expect_less_than(self.transport.get_write_buffer_size() + 1)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`: next to nothing of it is left."""
        self._sent()
        super().resume_writing()

    def _expect_less_than(self, waiting_bytes: int) -> None:
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes < waiting_bytes:
            self._sending = self.loop.call_later(SEND_TIMEOUT_S, self._expect_less_than, left_bytes)
        else:
            self.transport.abort()

    def _sent(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()  # a request is being answered; its body is timed elsewhere
        elif self._opening is None:
            self._opening = self.loop.call_later(HEADER_TIMEOUT_S, self._give_up)

    def _forget(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            self._opening = None

    def _give_up(self) -> None:
        self._opening = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
