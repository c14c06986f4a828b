"""One process that serves: an open bundle behind uvicorn, with limits on slow clients, and a quiet end."""

import asyncio
import logging
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from m3_runtime.server.app import create_app
from m3_runtime.server.service import Service
from m3_runtime.server.settings import MIB, RequestLimits, ServerSettings

_log = logging.getLogger("m3_runtime.server")

_BACKLOG = 1024
# longer than load balancers keep an idle connection (60 s), so that they close it and no request meets a closed end
_KEEP_ALIVE_S = 75
_MOST_HEADER_BYTES = 32 * 1024
HEADER_TIMEOUT_S = 10.0
SEND_TIMEOUT_S = 60.0


def run_worker(settings: ServerSettings, at: socket.socket, on_start: Callable[[], None] = lambda: None) -> None:
    """Open the bundle and answer requests at a bound socket; `on_start` is called when it does.

    Raises:
        M3Error: the bundle or a setting is not what it must be.
    """
    start_s = time.monotonic()
    with settings.bundle.open() as encoder:
        service = Service(encoder, settings)
        service.warm_up()
        app = create_app(service)
        host, port = at.getsockname()[:2]
        _log.info(
            "serving",
            extra={
                "url": f"http://{host}:{port}",
                "bundle": str(settings.bundle.path),
                "variant": encoder.variant.name,
                "threads": settings.bundle.threads,
                "loaded_s": round(time.monotonic() - start_s, 2),
                **memory_of().fields(),
            },
        )
        _Server(_uvicorn_config(app, settings.limits), service, on_start).run(sockets=[at])


def longest_end_s(limits: RequestLimits) -> int:
    """Seconds in which every request that was taken has its answer, or has run out of time."""
    return math.ceil(limits.body_timeout_s + limits.deadline_s) + 1


def _uvicorn_config(app: ASGIApp, limits: RequestLimits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="on",
        loop="asyncio",
        http=PatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,  # admission logs, without query strings
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=longest_end_s(limits),
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
    )


class _Server(uvicorn.Server):
    """Answers /ready with 503 before it stops listening."""

    def __init__(self, config: uvicorn.Config, service: Service, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._service = service
        self._stops_at_s: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.startup`."""
        await super().startup(sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins the delay, if there is one; a second one ends it."""
        delay_s = self._service.settings.drain_delay_s
        is_first = not self._service.is_draining
        self._service.is_draining = True
        if delay_s and is_first:
            self._captured_signals.append(sig)
            self._stops_at_s = time.monotonic() + delay_s
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """See `uvicorn.Server.on_tick`; ten times a second."""
        if self._stops_at_s is not None and time.monotonic() >= self._stops_at_s:
            self.should_exit = True
        return await super().on_tick(counter)


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, but closes connections whose headers never arrive whole, and whose answers nobody takes.

    uvicorn waits for ever for the first headers of a connection. A few thousand clients that send a byte now and then
    would hold all connections that the process may have. It also waits for ever for clients that take nothing of an
    answer, which stays in memory until they do.
    """

    _header_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        self._expect_headers()

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

    def _expect_headers(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_header_timer()  # a request is being answered; admission times its body
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._give_up)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _give_up(self) -> None:
        self._header_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


@dataclass(frozen=True)
class ProcessMemory:
    """All that is resident, and its share where pages are held together with others; in bytes. 0 where not known."""

    resident_bytes: int
    share_bytes: int

    def fields(self) -> dict[str, float]:
        """For a log line; none where nothing is known."""
        if not self.resident_bytes:
            return {}
        return {"resident_mib": round(self.resident_bytes / MIB, 1), "share_mib": round(self.share_bytes / MIB, 1)}


def memory_of(process: int | None = None) -> ProcessMemory:
    """The memory of a process, on Linux; None is this one."""
    try:
        text = Path(f"/proc/{process or 'self'}/smaps_rollup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ProcessMemory(0, 0)
    fields = dict(line.split(":", 1) for line in text.splitlines() if line.endswith("kB"))
    resident, share = (1024 * int(fields.get(key, "0 kB").split()[0]) for key in ("Rss", "Pss"))
    return ProcessMemory(resident, share)
