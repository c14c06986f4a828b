"""Serving: one process, or several behind one address that are started, watched, replaced and ended together."""

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from prometheus_client.multiprocess import mark_process_dead

from m3_runtime.cores import bind_to, cpus_of_workers, usable_cores
from m3_runtime.errors import EngineError, InputError, M3Error
from m3_runtime.exit_codes import FAILED, USAGE, exit_code
from m3_runtime.server.logs import log_to_stderr
from m3_runtime.server.metrics import WORKERS_FOLDER, all_workers, metrics_port
from m3_runtime.server.settings import ServerSettings
from m3_runtime.server.worker import cannot_listen, longest_end_s, memory_mib, run_worker

_log = logging.getLogger("m3_runtime.server")

_spawn = multiprocessing.get_context("spawn")  # engines have threads, which a fork would lose

_CHECK_EVERY_S = 0.2
_CANNOT_START = {FAILED: 64, USAGE: 65}  # how a worker ends, by how the command is to end
_MIN_LIFE_S = 5.0
"""A worker that dies sooner is replaced only after so long: something is wrong, and must not spin."""


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
        raise cannot_listen(settings, error) from error
    return at


class _Worker:
    """A worker process, when it was started, and the end of the pipe on which it says that it serves."""

    def __init__(self, settings: ServerSettings, at: socket.socket, cpus: tuple[int, ...]) -> None:
        self.news, voice = _spawn.Pipe(duplex=False)
        self.process: SpawnProcess = _spawn.Process(target=_work, args=(settings, at, voice, cpus), name="m3-worker")
        self.process.start()
        voice.close()
        self.started_s = time.monotonic()
        self.is_buried = False

    @property
    def serves(self) -> bool:
        """Whether it has said so and lives; the pipe of a dead one is readable too."""
        return not self.is_buried and self.process.is_alive() and self.news.poll()

    @property
    def may_be_replaced(self) -> bool:
        return self.is_buried and time.monotonic() >= self.started_s + _MIN_LIFE_S

    def bury(self) -> None:
        """Let go of what is left of a dead process."""
        self.process.join()
        self.news.close()
        mark_process_dead(self.process.pid)  # type: ignore[no-untyped-call]  # its gauges would stay in the sums
        self.is_buried = True


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
                living = [worker.process.sentinel for worker in self._workers if not worker.is_buried]
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
            if worker.may_be_replaced:
                self._workers[place] = _Worker(self._settings, self._at, self._cpus[place])
            elif not worker.is_buried and not worker.process.is_alive():
                if worker.process.exitcode in _CANNOT_START.values():
                    is_of_input = worker.process.exitcode == _CANNOT_START[USAGE]
                    raise (InputError if is_of_input else EngineError)("a worker cannot start; the log above says why")
                facts = {"worker": worker.process.pid, "exit": worker.process.exitcode}
                _log.error("worker_died", extra={**facts, "lived_s": round(time.monotonic() - worker.started_s, 1)})
                worker.bury()

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
        until_s = time.monotonic() + longest_end_s(self._settings) + 1
        living = [worker for worker in self._workers if not worker.is_buried]
        for worker in living:
            worker.process.terminate()
        for worker in living:
            worker.process.join(max(0.0, until_s - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
            worker.bury()


def _work(settings: ServerSettings, at: socket.socket, voice: Connection, cpus: tuple[int, ...]) -> None:
    """A worker's life, on CPUs of its own if it has any."""
    bind_to(cpus)
    log_to_stderr(settings.logs)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run_worker(settings, at, lambda: voice.send(True))
    except M3Error as error:
        _log.error("cannot_start", extra={"reason": str(error)})
        sys.exit(_CANNOT_START[exit_code(error)])


def _end_with_parent() -> None:
    """A parent that was killed ends nobody; an address without anyone to watch it would stay taken."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
