"""uvicorn's HTTP/1.1, with a limit on how long a client may take over his headers."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_TIMEOUT_S = 10.0


class PatientProtocol(H11Protocol):
    """Closes connections whose next request has begun, or never begins, and whose headers do not come to an end.

    uvicorn waits for ever for the first headers of a connection. A few thousand clients that send a byte now and then
    would hold all connections that the process may have.
    """

    _opening: asyncio.TimerHandle | None = None

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
        super().connection_lost(exc)

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
