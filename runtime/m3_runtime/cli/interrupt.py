"""Ctrl-C while an engine loads or computes: Python's main thread sees it at once, since the engine runs in another.

A batch of BGE-M3 takes up to a minute, and no engine can be told to stop. So the batch is left to itself: the command
unwinds, which takes its unfinished files away, and the process ends without waiting.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import TypeVar

from m3_runtime.bundle.manifest import Head
from m3_runtime.engines import Engine, RawOutputs, TokenBatch
from m3_runtime.opened_model import OpenedModel

_LOOK_S = 0.5  # Windows does not wake a thread that waits
_Result = TypeVar("_Result")
_Model = TypeVar("_Model", bound=OpenedModel)
_abandoned: list[object] = []


class InterruptibleEngine:
    """An engine whose runs can be abandoned: those of the main thread, and of streams, which nobody waits for then.

    Attributes:
        is_abandoned: runs were left behind, and may still compute.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.streams, self.packed_tokens = engine.streams, engine.packed_tokens
        self.is_abandoned = False
        self._under_way: set[object] = set()
        self._thread = ThreadPoolExecutor(1, "m3-engine")

    def run(self, batch: TokenBatch, outputs: Collection[Head]) -> RawOutputs:
        """As the engine's own."""
        self._under_way.add(key := object())

        def compute() -> RawOutputs:
            try:
                return self._engine.run(batch, outputs)
            finally:
                self._under_way.discard(key)

        if threading.current_thread() is not threading.main_thread():
            return compute()
        return _waited_for(self._thread.submit(compute))

    def rest(self, least_tokens: int) -> None:
        """As the engine's own; nothing while runs are under way, which nobody waits for after Ctrl-C."""
        if not self._under_way:
            self._engine.rest(least_tokens)

    def close(self) -> None:
        """Let go of the engine, unless it still computes."""
        if self._under_way:
            self.is_abandoned = True
            _abandoned.append(self)
            return
        self._thread.shutdown()  # it has nothing to do
        self._engine.close()


@contextmanager
def second_ends_at_once(code: int, message: str) -> Iterator[None]:
    """Let a second Ctrl-C end the process while the block runs, whatever computes; the first unwinds the block.

    The first is seen when what computes comes back to Python. A thread waits for the second.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        seen = 0
        with reader:
            while signals := reader.recv(64):
                seen += signals.count(signal.SIGINT)
                if seen > 1:
                    with suppress(OSError):
                        os.write(2, f"{message}\n".encode())
                    os._exit(code)

    threading.Thread(target=watch, name="m3-interrupts", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()  # which ends the thread


def end_without_waiting(code: int) -> None:
    """End the process if an engine may still compute: Python would take apart what it uses."""
    if _abandoned:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)


def interruptible(open_model: Callable[[], _Model]) -> _Model:
    """A model whose opening and whose batches Ctrl-C does not wait for; the results are the same."""
    thread = ThreadPoolExecutor(1, "m3-opening")
    try:
        opening = thread.submit(open_model)
        thread.shutdown(wait=False)
        model = _waited_for(opening)
    except KeyboardInterrupt:
        _abandoned.append(thread)
        raise
    model.engine = InterruptibleEngine(model.engine)
    return model


def _waited_for(future: Future[_Result]) -> _Result:
    while not wait([future], _LOOK_S).done:
        pass
    return future.result()
