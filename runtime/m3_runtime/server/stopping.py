"""SIGTERM while the server loads. Imports next to nothing, since it works while everything else is imported."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let SIGTERM end the process while the block runs, also where the system would not.

    Process 1 of a container gets no signal for which it has no handler. A handler in Python would wait for the engine,
    which may take a minute for a large graph, so a thread waits for the signal.
    """
    if os.getpid() != 1 and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    fd_before = signal.set_wakeup_fd(writer.fileno())

    def end() -> None:
        with reader:
            if signal.SIGTERM in reader.recv(64):
                os._exit(128 + signal.SIGTERM)

    threading.Thread(target=end, name="m3-loading", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd_before)
        signal.signal(signal.SIGTERM, before)
        writer.close()  # which ends the thread
