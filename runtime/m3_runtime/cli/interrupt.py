"""Ctrl-C while an engine computes: Python's main thread sees it at once, since the engine runs in another thread.

A batch of BGE-M3 takes up to a minute, and no engine can be told to stop. So the batch is left to itself: the command
unwinds, which takes its unfinished files away, and the process ends without waiting.
"""

import os
import sys
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue

from m3_runtime.bundle.manifest import Head
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines import Engine, RawOutputs, TokenBatch

_LOOK_S = 0.5  # Windows does not wake a thread that waits
_abandoned: list["InterruptibleEngine"] = []


class InterruptibleEngine:
    """An engine whose runs can be abandoned by the main thread; other threads run it as it is.

    Attributes:
        is_abandoned: a run was left behind, and may still compute.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.streams, self.packed_tokens = engine.streams, engine.packed_tokens
        self.is_abandoned = False
        self._runs: SimpleQueue[tuple[TokenBatch, Collection[Head], Future[RawOutputs]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="m3-engine", daemon=True)
        self._thread.start()

    def run(self, batch: TokenBatch, outputs: Collection[Head]) -> RawOutputs:
        """As the engine's own."""
        if threading.current_thread() is not threading.main_thread():
            return self._engine.run(batch, outputs)
        future: Future[RawOutputs] = Future()
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        self._runs.put((batch, outputs, future))
        try:
            while not done.wait(_LOOK_S):
                pass
        except BaseException:
            self.is_abandoned = True
            _abandoned.append(self)
            raise
        return future.result()

    def rest(self, least_tokens: int) -> None:
        """As the engine's own."""
        if not self.is_abandoned:
            self._engine.rest(least_tokens)

    def close(self) -> None:
        """Let go of the engine, unless it still computes."""
        if not self.is_abandoned:
            self._runs.put(None)
            self._thread.join()  # it has nothing to do
            self._engine.close()

    def _work(self) -> None:
        while (item := self._runs.get()) is not None:
            batch, outputs, future = item
            try:
                future.set_result(self._engine.run(batch, outputs))
            except BaseException as error:
                future.set_exception(error)


def end_without_waiting(code: int) -> None:
    """End the process if an engine may still compute: Python would take apart what it uses."""
    if _abandoned:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)


def interruptible(open_encoder: Callable[[], M3Encoder]) -> M3Encoder:
    """An encoder of the main thread whose batches Ctrl-C does not wait for; the vectors are the same."""
    encoder = open_encoder()
    encoder.engine = InterruptibleEngine(encoder.engine)
    return encoder
