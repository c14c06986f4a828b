"""What is refused before a body is read or while it is, and what is answered however busy the server is."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from m3_runtime import M3Encoder
from m3_runtime.errors import QueueFullError
from m3_runtime.server.app import create_app
from m3_runtime.server.service import Service
from m3_runtime.server.settings import RequestLimits, ServedBundle, ServerSettings
from patience import PATIENCE_S


class Exchange:
    """A request whose body comes in parts, as the test puts them; it remembers the answer."""

    def __init__(self, method: str, path: str, size: int | None = None) -> None:
        headers = [(b"content-type", b"application/json")]
        if size is not None:
            headers.append((b"content-length", str(size).encode()))
        self.scope = {
            "type": "http", "method": method, "path": path, "query_string": b"", "client": ("127.0.0.1", 9),
            "headers": headers,
        }  # fmt: skip
        self.parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.asked_for = 0
        self.sent: list[dict[str, Any]] = []

    def put(self, body: bytes, *, is_last: bool = False) -> None:
        self.parts.put_nowait({"type": "http.request", "body": body, "more_body": not is_last})

    def hang_up(self) -> None:
        self.parts.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> dict[str, Any]:
        self.asked_for += 1
        return await self.parts.get()

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


Ask = Callable[[Exchange], Coroutine[Any, Any, None]]


def serve(encoder: M3Encoder, scenario: Callable[[Service, Ask], Coroutine[Any, Any, None]], **limits: int) -> None:
    """Run a scenario against the app, in this process."""

    async def served() -> None:
        service = Service(encoder, ServerSettings(ServedBundle(Path("unused"), 1), limits=RequestLimits(**limits)))
        app = create_app(service)

        async def ask(request: Exchange) -> None:
            await app(request.scope, request.receive, request.send)

        async with asyncio.timeout(PATIENCE_S):
            await scenario(service, ask)

    asyncio.run(served())


def full(monkeypatch: pytest.MonkeyPatch, service: Service) -> list[int]:
    """Let the queue be full; for how many tokens room was looked for."""
    asked_for: list[int] = []

    def refuse(tokens: int, client: str, deadline_s: float) -> None:
        asked_for.append(tokens)
        raise QueueFullError("the server is busy", 3)

    monkeypatch.setattr(service.batcher, "check_room", refuse)
    return asked_for


TEXTS = ["some words that are tokens"] * 4
BODY = json.dumps({"inputs": TEXTS}).encode()


def test_a_full_queue_refuses_at_the_headers_by_the_tokens_that_such_bodies_held(encoder, monkeypatch):
    async def scenario(service: Service, ask: Ask) -> None:
        tokens = await tokens_of_a_body(encoder, ask)
        asked_for = full(monkeypatch, service)
        refused = Exchange("POST", "/embed", 10 * len(BODY))
        await ask(refused)
        assert refused.status == 429
        assert (b"retry-after", b"3") in refused.sent[0]["headers"]
        assert refused.asked_for == 0, "the body was read"
        assert asked_for == [10 * tokens]

    serve(encoder, scenario)


async def tokens_of_a_body(encoder: M3Encoder, ask: Ask) -> int:
    """Let the server see a body, and how many tokens it holds."""
    first = Exchange("POST", "/embed", len(BODY))
    first.put(BODY, is_last=True)
    await ask(first)
    assert first.status == 200
    return int(encoder.encode(TEXTS).token_counts.sum())


def test_a_body_of_unknown_size_is_refused_when_it_has_been_read(encoder, monkeypatch):
    async def scenario(service: Service, ask: Ask) -> None:
        tokens, asked_for = await tokens_of_a_body(encoder, ask), []

        def busy(tokens: int, client: str, deadline_s: float) -> None:
            asked_for.append(tokens)
            if tokens:
                raise QueueFullError("the server is busy", 3)

        monkeypatch.setattr(service.batcher, "check_room", busy)
        request = Exchange("POST", "/embed")
        request.put(BODY)
        request.put(BODY, is_last=True)  # no JSON together, which nobody finds out
        await ask(request)
        assert request.status == 429
        assert asked_for == [0, 2 * tokens]

    serve(encoder, scenario)


def test_what_needs_no_queue_is_let_in(encoder, monkeypatch):
    async def scenario(service: Service, ask: Ask) -> None:
        asked_for = full(monkeypatch, service)
        request = Exchange("POST", "/tokenize", 2000)
        request.hang_up()
        await ask(request)
        assert request.asked_for == 1
        assert asked_for == []

    serve(encoder, scenario)


def test_health_is_answered_when_no_more_requests_are_taken(encoder):
    async def scenario(service: Service, ask: Ask) -> None:
        slow = Exchange("POST", "/embed", 10)
        slow_task = asyncio.create_task(ask(slow))
        while not slow.asked_for:
            await asyncio.sleep(0)
        refused = Exchange("POST", "/embed", 10)
        await ask(refused)
        assert refused.status == 429
        assert "1 requests are under way" in refused.text
        for method in ("GET", "HEAD"):
            for path in ("/health", "/ready", "/metrics"):
                request = Exchange(method, path)
                await ask(request)
                assert request.status == (405 if (method, path) == ("HEAD", "/metrics") else 200), (method, path)
        slow.hang_up()
        await slow_task

    serve(encoder, scenario, max_requests=1)


def test_bytes_that_were_not_announced_count_while_they_are_read(encoder):
    async def scenario(service: Service, ask: Ask) -> None:
        first, second = (Exchange("POST", "/embed") for _ in range(2))
        tasks = [asyncio.create_task(ask(request)) for request in (first, second)]
        first.put(b" " * 60)
        second.put(b" " * 30)
        while min(first.asked_for, second.asked_for) < 2:
            await asyncio.sleep(0)
        second.put(b" " * 30)
        await tasks[1]
        assert second.status == 429
        assert "90 bytes of requests are under way" in second.text
        first.put(b'{"inputs": "a"}', is_last=True)
        await tasks[0]
        assert first.status == 200
        third = Exchange("POST", "/embed", 100)  # all of it has been let go of
        third.put(b'{"inputs": "a"}'.ljust(100), is_last=True)
        await ask(third)
        assert third.status == 200

    serve(encoder, scenario, max_held_bytes=100)
