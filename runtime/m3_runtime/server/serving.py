"""Serving: one process, or several behind one address that are started, watched, replaced and ended together.

A process that serves is an open bundle behind uvicorn, which ends in bounded time.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from starlette.types import ASGIApp

from m3_runtime.cores import bind_to, cpus_of_workers, usable_cores
from m3_runtime.engines.resident import limit_heaps
from m3_runtime.errors import EngineError, InputError, M3Error
from m3_runtime.exit_codes import FAILED, USAGE, exit_code
from m3_runtime.server.app import create_app
from m3_runtime.server.logs import log_to_stderr
from m3_runtime.server.metrics import WORKERS_FOLDER, all_workers, metrics_port
from m3_runtime.server.protocol import StrictProtocol, raise_file_limit
from m3_runtime.server.service import Service
from m3_runtime.server.settings import ServerSettings
from m3_runtime.server.stopping import ending_at_once

_log = logging.getLogger("m3_runtime.server")
_spawn = multiprocessing.get_context("spawn")  # engines have threads, which a fork would lose

_CHECK_EVERY_S = 0.2
_CANNOT_START = {FAILED: 64, USAGE: 65}  # how a worker ends, by how the command is to end
_MIN_LIFE_S = 5.0
"""A worker that dies sooner is replaced only after so long: something is wrong, and must not spin."""

_BACKLOG = 1024
# longer than load balancers keep an idle connection (60 s), so that they close it and no request meets a closed end
_KEEP_ALIVE_S = 75
_MOST_HEADER_BYTES = 32 * 1024
_INTERRUPTED = 130
_SEND_LAST_S = 2
"""After the drain's end: time to send what is being sent, and the refusals."""


def serve(settings: ServerSettings) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests that were taken.

    Raises:
        M3Error: the bundle or a setting is not what it must be.
        InputError: the address cannot be listened on, a bundle is of the other kind, or one of several workers cannot
            start for what it was given; its own log says why.
        EngineError: one of several workers cannot start for another reason.
    """
    log_to_stderr(settings.logs)
    if settings.port and settings.metrics_port == settings.port:
        raise InputError(f"port and metrics port are both {settings.port}; choose another --metrics-port")
    settings.check_kinds()
    with listening(settings) as at:
        if settings.workers == 1:
            run_worker(settings, at)
            return
        with tempfile.TemporaryDirectory(prefix="m3-counts-") as counts:
            os.environ[WORKERS_FOLDER] = counts
            try:
                with ExitStack() as beside:
                    if settings.metrics_port is not None:
                        beside.enter_context(metrics_port(settings.host, settings.metrics_port, all_workers()))
                    _Supervisor(settings, at).run()
            finally:
                del os.environ[WORKERS_FOLDER]


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
        raise _cannot_listen(settings, error) from error
    return at


def _cannot_listen(settings: ServerSettings, error: Exception) -> InputError:
    return InputError(f"cannot listen on {settings.host}:{settings.port}: {error}; choose another --host or --port")


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


class _Server(uvicorn.Server):
    """Answers /ready with 503 before it stops listening, and everything with 503 when the drain is over."""

    def __init__(self, app: ASGIApp, service: Service, on_start: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            lifespan="on",
            loop="asyncio",
            http=StrictProtocol,
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
            raise _cannot_listen(self._service.settings, error) from error
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


class _Worker:
    """A worker process, when it was started, and the end of the pipe on which it says that it serves."""

    def __init__(self, settings: ServerSettings, at: socket.socket, cpus: tuple[int, ...]) -> None:
        self._reader, writer = _spawn.Pipe(duplex=False)
        self.process: SpawnProcess = _spawn.Process(target=_work, args=(settings, at, writer, cpus), name="m3-worker")
        self.process.start()
        writer.close()
        self.started_s = time.monotonic()
        self.is_released = False

    @property
    def serves(self) -> bool:
        """Whether it has said so and lives; the pipe of a dead one is readable too."""
        return not self.is_released and self.process.is_alive() and self._reader.poll()

    def release(self) -> None:
        """Let go of what is left of a dead process."""
        self.process.join()
        self._reader.close()
        mark_process_dead(self.process.pid)  # type: ignore[no-untyped-call]  # its gauges would stay in the sums
        self.is_released = True


class _Supervisor:
    def __init__(self, settings: ServerSettings, at: socket.socket) -> None:
        self._settings = settings
        self._at = at
        self._cpus = cpus_of_workers(settings.workers, settings.bundle.threads, usable_cores())
        self._workers: list[_Worker] = []
        self._is_ending = False
        self._has_logged_memory = False

    def run(self) -> None:
        """Start all workers and watch them until a signal comes."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end_soon)
        try:
            self._workers = [_Worker(self._settings, self._at, cpus) for cpus in self._cpus]
            while not self._is_ending:
                living = [worker.process.sentinel for worker in self._workers if not worker.is_released]
                wait(living, _CHECK_EVERY_S) if living else time.sleep(_CHECK_EVERY_S)
                self._replace_dead()
                self._log_memory()
        finally:
            self._end()

    def _end_soon(self, *_: object) -> None:
        """A signal handler: it sets a flag and takes no lock, since it may interrupt code that holds one."""
        self._is_ending = True

    def _replace_dead(self) -> None:
        for place, worker in enumerate(self._workers):
            if self._is_ending:
                return
            if worker.is_released and time.monotonic() >= worker.started_s + _MIN_LIFE_S:
                self._workers[place] = _Worker(self._settings, self._at, self._cpus[place])
            elif not worker.is_released and not worker.process.is_alive():
                if worker.process.exitcode in _CANNOT_START.values():
                    is_of_input = worker.process.exitcode == _CANNOT_START[USAGE]
                    raise (InputError if is_of_input else EngineError)("a worker cannot start; the log above says why")
                facts = {"worker": worker.process.pid, "exit": worker.process.exitcode}
                _log.error("worker_died", extra={**facts, "lived_s": round(time.monotonic() - worker.started_s, 1)})
                worker.release()

    def _log_memory(self) -> None:
        """Once all serve: what each holds, and what all hold together, shared pages counted once."""
        if self._has_logged_memory or not all(worker.serves for worker in self._workers):
            return
        self._has_logged_memory = True
        found = [memory_mib(worker.process.pid) for worker in self._workers]
        _log.info(
            "all_workers_serve",
            extra={
                "workers": len(found),
                "resident_mib": [memory.get("resident_mib", 0.0) for memory in found],
                "together_mib": round(sum(memory.get("share_mib", 0.0) for memory in found), 1),
            },
        )

    def _end(self) -> None:
        settings = self._settings
        until_s = time.monotonic() + settings.drain_delay_s + settings.drain_s + _SEND_LAST_S + 2
        living = [worker for worker in self._workers if not worker.is_released]
        for worker in living:
            worker.process.terminate()
        for worker in living:
            worker.process.join(max(0.0, until_s - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
            worker.release()


def _work(settings: ServerSettings, at: socket.socket, writer: Connection, cpus: tuple[int, ...]) -> None:
    """A worker's life, on CPUs of its own if it has any."""
    bind_to(cpus)
    log_to_stderr(settings.logs)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run_worker(settings, at, lambda: writer.send(True))
    except M3Error as error:
        _log.error("cannot_start", extra={"reason": str(error)})
        sys.exit(_CANNOT_START[exit_code(error)])


def _end_with_parent() -> None:
    """End when the parent is killed: a worker that nobody supervises would keep the address."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
