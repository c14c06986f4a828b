"""Several processes behind one address: started together, watched, replaced when they die, ended together."""

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
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from m3_runtime.errors import EngineError, M3Error
from m3_runtime.server.logs import log_as_json
from m3_runtime.server.memory import memory_of
from m3_runtime.server.settings import MIB, ServerSettings

_log = logging.getLogger("m3_runtime.server")

_spawn = multiprocessing.get_context("spawn")  # engines have threads, which a fork would lose

_LOOK_EVERY_S = 0.2
_CANNOT_START = 3
_SHORT_LIFE_S = 5.0
"""A worker that has not lived so long is not replaced earlier: something is wrong, and must not spin."""


def serve_with_workers(settings: ServerSettings, at: socket.socket) -> None:
    """Serve with several workers until SIGTERM or SIGINT, then let all of them finish.

    Raises:
        EngineError: a worker cannot start; its own log says why.
    """
    from prometheus_client.multiprocess import mark_process_dead

    from m3_runtime.server.metrics import WORKERS_FOLDER

    with tempfile.TemporaryDirectory(prefix="m3-counts-") as counts:
        os.environ[WORKERS_FOLDER] = counts
        try:
            _Workers(settings, at, mark_process_dead).run()
        finally:
            del os.environ[WORKERS_FOLDER]


@dataclass(frozen=True)
class _Worker:
    """A process, when it was started, and the end of the pipe on which it says that it serves."""

    process: SpawnProcess
    started_s: float
    news: Connection


class _Workers:
    def __init__(self, settings: ServerSettings, at: socket.socket, bury: Callable[[int | None], None]) -> None:
        self._settings = settings
        self._at = at
        self._bury = bury
        self._workers: list[_Worker] = []
        self._is_ending = threading.Event()
        self._is_told = False

    def run(self) -> None:
        """Start all workers and watch them until a signal comes."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._is_ending.set())
        try:
            self._workers = [self._start() for _ in range(self._settings.workers)]
            while not self._is_ending.is_set():
                wait([worker.process.sentinel for worker in self._workers], _LOOK_EVERY_S)
                self._replace_dead()
                self._tell_memory()
        finally:
            self._end()

    def _start(self) -> _Worker:
        news, voice = _spawn.Pipe(duplex=False)
        process = _spawn.Process(target=_work, args=(self._settings, self._at, voice), name="m3-worker")
        process.start()
        voice.close()
        return _Worker(process, time.monotonic(), news)

    def _replace_dead(self) -> None:
        for place, worker in enumerate(self._workers):
            if worker.process.is_alive() or self._is_ending.is_set():
                continue
            if worker.process.exitcode == _CANNOT_START:
                raise EngineError("a worker cannot start; the log above says why")
            self._forget(worker)
            lived_s = time.monotonic() - worker.started_s
            _log.error(
                "worker_died",
                extra={"worker": worker.process.pid, "exit": worker.process.exitcode, "lived_s": round(lived_s, 1)},
            )
            self._is_ending.wait(max(0.0, _SHORT_LIFE_S - lived_s))
            self._workers[place] = self._start()

    def _forget(self, worker: _Worker) -> None:
        worker.process.join()
        worker.news.close()
        self._bury(worker.process.pid)  # its gauges would stay in the sums

    def _tell_memory(self) -> None:
        """Once all serve: what each holds, and what all hold together, shared pages counted once."""
        if self._is_told or not all(worker.news.poll() for worker in self._workers):
            return
        self._is_told = True
        found = [memory_of(worker.process.pid) for worker in self._workers]
        _log.info(
            "all_workers_serve",
            extra={
                "workers": len(found),
                "resident_mib": [round(memory.resident_bytes / MIB, 1) for memory in found],
                "together_mib": round(sum(memory.share_bytes for memory in found) / MIB, 1),
            },
        )

    def _end(self) -> None:
        from m3_runtime.server.serving import longest_end_s

        until_s = time.monotonic() + self._settings.drain_delay_s + longest_end_s(self._settings.limits) + 5
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(max(0.0, until_s - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
            self._forget(worker)


def _work(settings: ServerSettings, at: socket.socket, voice: Connection) -> None:
    """A worker's life."""
    from m3_runtime.server.serving import run_worker

    log_as_json()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run_worker(settings, at, lambda: voice.send(True))
    except M3Error as error:
        _log.error("cannot_start", extra={"reason": str(error)})
        sys.exit(_CANNOT_START)


def _end_with_parent() -> None:
    """A parent that was killed ends nobody; an address without anyone to watch it would stay taken."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
