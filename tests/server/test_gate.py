"""A busy server says so before it reads a body."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from m3_runtime.errors import QueueFullError
from m3_runtime.server.app import create_app
from m3_runtime.server.backend import Backend, Opening
from m3_runtime.server.service import Service
from m3_runtime.server.settings import ServerSettings


class Unread:
    """A request whose body must not be asked for; it remembers the answer."""

    def __init__(self, path: str, size: int) -> None:
        self.scope = {
            "type": "http", "method": "POST", "path": path, "query_string": b"", "client": ("127.0.0.1", 9),
            "headers": [(b"content-type", b"application/json"), (b"content-length", str(size).encode())],
        }  # fmt: skip
        self.is_asked_for = False
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        self.is_asked_for = True
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


def ask(backend: Backend, monkeypatch: pytest.MonkeyPatch, path: str) -> tuple[Unread, list[int]]:
    """Ask a server whose queue is full; the request, and for how many tokens room was looked for."""
    asked_for: list[int] = []

    def full(tokens: int, client: str, deadline_s: float) -> None:
        asked_for.append(tokens)
        raise QueueFullError("the server is busy", 3)

    async def scenario() -> Unread:
        service = Service(backend, ServerSettings(Opening(Path("unused"), threads=1)))
        service._sizes.note(tokens=100, body_bytes=400)
        monkeypatch.setattr(service.batcher, "check_room", full)
        request = Unread(path, size=2000)
        await create_app(service)(request.scope, request.receive, request.send)
        return request

    return asyncio.run(scenario()), asked_for


def test_a_full_queue_is_told_at_the_headers(backend, monkeypatch):
    request, asked_for = ask(backend, monkeypatch, "/embed")
    assert request.sent[0]["status"] == 429
    assert (b"retry-after", b"3") in request.sent[0]["headers"]
    assert not request.is_asked_for
    assert asked_for == [500]  # 2000 bytes, a token for each four


def test_what_needs_no_queue_is_let_in(backend, monkeypatch):
    request, asked_for = ask(backend, monkeypatch, "/tokenize")
    assert request.is_asked_for
    assert asked_for == []
