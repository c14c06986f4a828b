"""One process that serves: an open bundle behind uvicorn, and its end in bounded time."""

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from m3_runtime.engines.resident import limit_heaps
from m3_runtime.errors import InputError
from m3_runtime.server.app import create_app
from m3_runtime.server.metrics import metrics_port
from m3_runtime.server.protocol import PatientProtocol, raise_file_limit
from m3_runtime.server.service import Service
from m3_runtime.server.settings import ServerSettings
from m3_runtime.server.stopping import ending_at_once

_log = logging.getLogger("m3_runtime.server")

_BACKLOG = 1024
# longer than load balancers keep an idle connection (60 s), so that they close it and no request meets a closed end
_KEEP_ALIVE_S = 75
_MOST_HEADER_BYTES = 32 * 1024
_INTERRUPTED = 130
_SEND_LAST_S = 2
"""After the drain's end: time to send what is being sent, and the refusals."""


def run_worker(settings: ServerSettings, at: socket.socket, on_start: Callable[[], None] = lambda: None) -> None:
    """Open the bundle and answer requests at a bound socket; `on_start` is called when it does.

    Raises:
        M3Error: the bundle or a setting is not what it must be, or another server was faster to listen there.
    """
    start_s = time.monotonic()
    limit_heaps()
    raise_file_limit()
    with ExitStack() as opened:
        with ending_at_once():
            reranker = settings.open_reranker()
            if reranker is not None:
                opened.enter_context(reranker)
            model = settings.bundle.open()
            opened.enter_context(model)
            service = Service(model, settings, reranker)
            service.warm_up()
            app = create_app(service)
        if settings.metrics_port is not None and settings.workers == 1:
            opened.enter_context(metrics_port(settings.host, settings.metrics_port, service.metrics.registry))

        def started() -> None:
            _log_serving(service, at, time.monotonic() - start_s)
            on_start()

        try:
            _Server(app, service, started).run(sockets=[at])
        finally:
            if service.batcher.is_running:
                _log.warning("a batch is not done, and nobody waits for it; the process ends without it")
                os._exit(_INTERRUPTED if isinstance(sys.exception(), KeyboardInterrupt) else 0)


def _log_serving(service: Service, at: socket.socket, loaded_s: float) -> None:
    settings = service.settings
    host, port = at.getsockname()[:2]
    _log.info(
        "serving",
        extra={
            "url": f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}",
            "bundle": str(settings.bundle.path),
            "variant": service.model.variant.name,
            **({} if settings.reranker is None else {"reranker": str(settings.reranker.path)}),
            "threads": settings.bundle.threads,
            "loaded_s": round(loaded_s, 2),
            **memory_mib(),
        },
    )


def cannot_listen(settings: ServerSettings, error: Exception) -> InputError:
    """What to say where the address is taken, or is none."""
    return InputError(f"cannot listen on {settings.host}:{settings.port}: {error}; choose another --host or --port")


def longest_end_s(settings: ServerSettings) -> float:
    """Seconds from SIGTERM until the process has ended, of itself."""
    return settings.drain_delay_s + settings.drain_s + _SEND_LAST_S + 1


class _Server(uvicorn.Server):
    """Answers /ready with 503 before it stops listening, and everything with 503 when the drain is over."""

    def __init__(self, app: ASGIApp, service: Service, on_start: Callable[[], None]) -> None:
        config = uvicorn.Config(
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
            timeout_graceful_shutdown=int(service.settings.drain_s) + _SEND_LAST_S,
            h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        )
        super().__init__(config)
        self._on_start = on_start
        self._service = service
        self._stops_at_s: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.startup`.

        Raises:
            InputError: another server, which was bound to the same address too, has begun to listen there.
        """
        try:
            await super().startup(sockets)
        except OSError as error:
            await self.lifespan.shutdown()
            raise cannot_listen(self._service.settings, error) from error
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.shutdown`."""
        self._service.is_draining = True
        asyncio.get_running_loop().call_later(self._service.settings.drain_s, self._service.stop)
        await super().shutdown(sockets)

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


def memory_mib(process: int | None = None) -> dict[str, float]:
    """What is resident of a process, this one by default, and its share of pages that others hold too; {} off Linux."""
    try:
        text = Path(f"/proc/{process or 'self'}/smaps_rollup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in text.splitlines() if line.endswith("kB"))
    names = {"resident_mib": "Rss", "share_mib": "Pss"}
    return {name: round(int(fields.get(key, "0 kB").split()[0]) / 1024, 1) for name, key in names.items()}
