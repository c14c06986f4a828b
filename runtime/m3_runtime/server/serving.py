"""The process: a socket, a loaded variant, uvicorn, and a quiet end."""

import logging
import math
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from m3_runtime.errors import InputError
from m3_runtime.server.app import create_app
from m3_runtime.server.backend import Backend
from m3_runtime.server.logs import log_as_json
from m3_runtime.server.memory import memory_of
from m3_runtime.server.protocol import PatientProtocol
from m3_runtime.server.service import Service
from m3_runtime.server.settings import Limits, ServerSettings
from m3_runtime.server.workers import serve_with_workers

_log = logging.getLogger("m3_runtime.server")

_BACKLOG = 1024
# longer than load balancers keep an idle connection (60 s), so that they close it and no request meets a closed end
_KEEP_ALIVE_S = 75
_MOST_HEADER_BYTES = 32 * 1024


def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was taken.

    Raises:
        M3Error: the bundle or a setting is not what it must be.
        InputError: the address cannot be listened on.
    """
    log_as_json()
    with listening(settings) as at:
        if settings.workers == 1:
            run_worker(settings, at)
        else:
            serve_with_workers(settings, at)


def run_worker(settings: ServerSettings, at: socket.socket, tell: Callable[[], None] = lambda: None) -> None:
    """Open the bundle and answer what comes in at a bound socket; `tell` is called when it does.

    Raises:
        M3Error: the bundle or a setting is not what it must be.
    """
    start_s = time.monotonic()
    backend = Backend.open(settings.opening)
    try:
        backend.warm_up()
        service = Service(backend, settings)
        app = create_app(service)
        host, port = at.getsockname()[:2]
        _log.info(
            "serving",
            extra={
                "url": f"http://{host}:{port}",
                "bundle": str(settings.opening.bundle),
                "variant": backend.variant.name,
                "threads": settings.opening.threads,
                "loaded_s": round(time.monotonic() - start_s, 2),
                **memory_of().noted(),
            },
        )
        _Server(_uvicorn_config(app, settings.limits), service, tell).run(sockets=[at])
    finally:
        backend.close()


def _uvicorn_config(app: ASGIApp, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="on",
        loop="asyncio",
        http=PatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,  # the gate logs, without query strings
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=longest_end_s(limits),
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
    )


def longest_end_s(limits: Limits) -> int:
    """Seconds in which everything that was taken has its answer, or its time is up."""
    return math.ceil(limits.body_timeout_s + limits.deadline_s) + 1


def listening(settings: ServerSettings) -> socket.socket:
    """A socket that is bound and not yet open; connections wait in it until a worker takes them.

    Raises:
        InputError: the address cannot be listened on.
    """
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        # The protocol is named, or asyncio would not switch Nagle's algorithm off, and answers would wait 40 ms.
        with ExitStack() as failing:
            at = failing.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            at.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            at.bind((settings.host, settings.port))
            at.set_inheritable(True)
            failing.pop_all()
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {settings.host}:{settings.port}: {error}; choose another --port") from error
    return at


class _Server(uvicorn.Server):
    """Says that it is not ready any more before it stops listening."""

    def __init__(self, config: uvicorn.Config, service: Service, tell: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = tell
        self._service = service
        self._stops_at_s: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.startup`."""
        await super().startup(sockets)
        self._tell()

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
