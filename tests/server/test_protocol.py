"""Connections that would be held for ever: headers that never end, bodies that nobody wants, answers nobody takes."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from m3_runtime.server import protocol
from patience import PATIENCE_S

ANSWER_BYTES = 64 * 2**20
ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@contextmanager
def served(status: int, body: bytes) -> Iterator[tuple[str, int]]:
    """An address at which everything gets one answer."""

    async def app(scope, receive, send):
        headers = [(b"content-length", str(len(body)).encode())] if body else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(app, port=0, http=protocol.StrictProtocol, lifespan="off", log_config=None, ws="none")
    config.timeout_keep_alive = int(PATIENCE_S)
    at = config.bind_socket()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([at],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield at.getsockname()
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        at.close()


def taken(line: socket.socket) -> int:
    """All that still comes, in bytes."""
    total = 0
    while part := line.recv(2**20):
        total += len(part)
    return total


def test_headers_that_never_end_are_not_waited_for(monkeypatch):
    """uvicorn itself would wait for ever. A connection that only idles between requests is left alone."""
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_S", 3.0)
    with served(204, b"") as address:
        idle, slow, silent = (socket.create_connection(address, timeout=PATIENCE_S) for _ in range(3))
        for line in (idle, slow):
            line.sendall(ASK)
            assert b" 204 " in line.recv(4096)
        slow.sendall(b"GET / HT")
        assert slow.recv(4096) == silent.recv(4096) == b""  # closed
        idle.sendall(ASK)
        assert b" 204 " in idle.recv(4096)
        for line in (idle, slow, silent):
            line.close()


def test_an_answer_that_nobody_takes_is_let_go_of(monkeypatch):
    monkeypatch.setattr(protocol, "SEND_TIMEOUT_S", 3.0)
    cut_off = threading.Event()
    lost = protocol.StrictProtocol.connection_lost

    def noting(self, exc):
        lost(self, exc)
        cut_off.set()

    monkeypatch.setattr(protocol.StrictProtocol, "connection_lost", noting)
    with served(200, bytes(ANSWER_BYTES)) as address:
        with socket.create_connection(address, timeout=PATIENCE_S) as idle:
            idle.sendall(ASK)
            assert cut_off.wait(PATIENCE_S)
        with socket.create_connection(address, timeout=PATIENCE_S) as reading:
            reading.sendall(ASK.replace(b"host: x", b"host: x\r\nconnection: close"))
            assert taken(reading) > ANSWER_BYTES


def test_a_body_that_nobody_wanted_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_S", 3.0)
    with served(204, b"") as address:
        silent, late = (socket.create_connection(address, timeout=PATIENCE_S) for _ in range(2))
        for line in (silent, late):
            line.sendall(b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
            assert b" 204 " in line.recv(4096)
        late.sendall(b"123456789")
        assert silent.recv(4096) == b""  # closed
        late.sendall(ASK)
        assert b" 204 " in late.recv(4096)
        silent.close()
        late.close()


def test_of_too_many_connections_the_oldest_that_send_nothing_go(monkeypatch):
    monkeypatch.setattr(protocol, "most_connections", lambda: 16)
    with served(204, b"") as address:
        silent = [socket.create_connection(address, timeout=PATIENCE_S) for _ in range(40)]
        quick = socket.create_connection(address, timeout=PATIENCE_S)
        quick.sendall(ASK)
        assert b" 204 " in quick.recv(4096)
        assert silent[0].recv(4096) == b""  # closed
        for line in (*silent, quick):
            line.close()
