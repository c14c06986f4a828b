"""The process: a socket, a loaded variant, uvicorn, and a quiet end."""

import logging
import math
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from m3_runtime.errors import InputError
from m3_runtime.server.app import create_app
from m3_runtime.server.backend import Backend
from m3_runtime.server.logs import log_as_json
from m3_runtime.server.protocol import PatientProtocol
from m3_runtime.server.service import Service
from m3_runtime.server.settings import MIB, Limits, ServerSettings

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
        run_worker(settings, at)


def run_worker(settings: ServerSettings, at: socket.socket) -> None:
    """Open the bundle and answer what comes in at a socket that listens."""
    start_s = time.monotonic()
    backend = Backend.open(settings.opening)
    try:
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
                **own_memory().noted(),
            },
        )
        config = uvicorn.Config(
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
            timeout_graceful_shutdown=longest_end_s(settings.limits),
            h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        )
        _Server(config, service).run(sockets=[at])
    finally:
        backend.close()


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
        at = socket.socket(family, socket.SOCK_STREAM)
        at.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        at.bind((settings.host, settings.port))
        at.set_inheritable(True)
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {settings.host}:{settings.port}: {error}; choose another --port") from error
    return at


class _Server(uvicorn.Server):
    """Says that it is not ready any more before it stops listening."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._stops_at_s: float | None = None

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


@dataclass(frozen=True)
class Memory:
    """What a process holds: all that is resident, and its share where pages are held together with others; in bytes."""

    resident_bytes: int
    share_bytes: int

    def noted(self) -> dict[str, float]:
        """For a log line; nothing where the system does not tell."""
        if not self.resident_bytes:
            return {}
        return {
            "resident_mib": round(self.resident_bytes / MIB, 1),
            "share_mib": round(self.share_bytes / MIB, 1),
        }


def own_memory() -> Memory:
    """This process's memory (Linux)."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii", errors="replace")
    except OSError:
        return Memory(0, 0)
    fields = dict(line.split(":", 1) for line in text.splitlines() if line.endswith("kB") and ":" in line)
    resident, share = (1024 * int(fields.get(key, "0 kB").split()[0]) for key in ("Rss", "Pss"))
    return Memory(resident, share)
