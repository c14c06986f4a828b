"""What is refused before a body is read or while it is, what counts, and what is answered however busy all is."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_runtime import M3Encoder
from m3_runtime.errors import QueueFullError
from m3_runtime.server.app import create_app
from m3_runtime.server.service import Service
from m3_runtime.server.settings import RequestLimits, ServedBundle, ServerSettings
from patience import PATIENCE_S


class Exchange:
    """A request whose body comes in parts, as the test puts them; it remembers the answer."""

    def __init__(
        self, method: str, path: str, size: int | None = None, client: str = "127.0.0.1", key: str = ""
    ) -> None:
        headers = [(b"content-type", b"application/json")]
        if key:
            headers.append((b"authorization", f"Bearer {key}".encode()))
        if size is not None:
            headers.append((b"content-length", str(size).encode()))
        self.scope = {
            "type": "http", "method": method, "path": path, "query_string": b"", "client": (client, 9),
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

    @classmethod
    def whole(cls, body: dict[str, Any], **who: str) -> "Exchange":
        """POST /embed, with its body."""
        exchange = cls("POST", "/embed", **who)
        exchange.put(json.dumps(body).encode(), is_last=True)
        return exchange

    @property
    def status(self) -> int:
        return self.sent[0]["status"]

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()


Ask = Callable[[Exchange], Coroutine[Any, Any, None]]


def serve(
    encoder: M3Encoder,
    scenario: Callable[[Service, Ask], Coroutine[Any, Any, None]],
    keys: Path | None = None,
    **limits: float,
) -> None:
    """Run a scenario against the app, in this process."""

    async def served() -> None:
        bundle, request_limits = ServedBundle(Path("unused"), 1), RequestLimits(**limits)
        service = Service(encoder, ServerSettings(bundle, limits=request_limits, api_key_file=keys))
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


def test_a_full_queue_refuses_at_the_headers_by_the_tokens_that_such_bodies_may_hold(encoder, monkeypatch):
    async def scenario(service: Service, ask: Ask) -> None:
        asked_for = full(monkeypatch, service)
        refused = Exchange("POST", "/embed", 8000)
        await ask(refused)
        assert refused.status == 429
        assert (b"retry-after", b"3") in refused.sent[0]["headers"]
        assert refused.asked_for == 0, "the body was read"
        assert asked_for == [1000]

    serve(encoder, scenario)


def test_a_body_of_unknown_size_is_refused_when_it_has_been_read(encoder, monkeypatch):
    async def scenario(service: Service, ask: Ask) -> None:
        asked_for: list[int] = []

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
        assert asked_for == [0, 2 * len(BODY) // 8]

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


async def reading(request: Exchange, times: int = 1) -> None:
    """Wait until the server has asked so often for more of a body."""
    while request.asked_for < times:
        await asyncio.sleep(0)


def test_health_is_answered_when_no_more_requests_are_taken(encoder, monkeypatch):
    """The limit is one client's; another has the quarter, and health has none."""

    async def scenario(service: Service, ask: Ask) -> None:
        may_go_on = asyncio.Event()
        encode = service.encode

        async def slow(*words: Any) -> Any:
            await may_go_on.wait()
            return await encode(*words)

        monkeypatch.setattr(service, "encode", slow)
        under_way = [Exchange.whole({"inputs": "a"}, client=client) for client in ("here", "there")]
        tasks = [asyncio.create_task(ask(request)) for request in under_way]
        await reading(under_way[1], 2)
        for client in ("here", "there", "elsewhere"):
            refused = Exchange("POST", "/embed", 10, client=client)
            await ask(refused)
            assert refused.status == 429
            assert "2 requests are under way" in refused.text
            assert refused.asked_for == 0
        for method in ("GET", "HEAD"):
            for path in ("/health", "/ready", "/metrics"):
                request = Exchange(method, path)
                await ask(request)
                assert request.status == (405 if (method, path) == ("HEAD", "/metrics") else 200), (method, path)
        may_go_on.set()
        await asyncio.gather(*tasks)
        assert [request.status for request in under_way] == [200, 200]

    serve(encoder, scenario, max_requests=1)


def test_who_sends_slowly_takes_nobodys_place(encoder):
    async def scenario(service: Service, ask: Ask) -> None:
        slow = [Exchange("POST", "/embed", 1000) for _ in range(50)]
        tasks = [asyncio.create_task(ask(request)) for request in slow]
        for request in slow:
            request.put(b"{")
            await reading(request, 2)
        quick = Exchange.whole({"inputs": "a"})
        await ask(quick)
        assert quick.status == 200
        for request in slow:
            request.hang_up()
        await asyncio.gather(*tasks)

    serve(encoder, scenario, max_requests=2, max_held_bytes=1000)


def test_bytes_count_while_they_are_read_and_one_client_has_half_of_the_room(encoder):
    async def scenario(service: Service, ask: Ask) -> None:
        first = Exchange("POST", "/embed", 200)  # what is announced does not count
        second, third = Exchange("POST", "/embed"), Exchange("POST", "/embed", client="other")
        tasks = [asyncio.create_task(ask(request)) for request in (first, second, third)]
        first.put(b" " * 60)
        second.put(b" " * 30)
        third.put(b" " * 90)
        for request in (first, second, third):
            await reading(request, 2)
        second.put(b" " * 30)
        await tasks[1]
        assert second.status == 429
        assert "180 bytes of requests are under way" in second.text
        for request in (first, third):
            request.put(b'{"inputs": "a"}'.ljust(30), is_last=True)
        await asyncio.gather(*tasks)
        assert (first.status, third.status) == (200, 429)
        again = Exchange("POST", "/embed", 100)  # all of it has been let go of
        again.put(b'{"inputs": "a"}'.ljust(100), is_last=True)
        await ask(again)
        assert again.status == 200

    serve(encoder, scenario, max_held_bytes=200)


def test_a_body_has_more_time_the_longer_it_is(encoder):
    async def scenario(service: Service, ask: Ask) -> None:
        slow, steady = Exchange("POST", "/embed"), Exchange("POST", "/embed")
        tasks = [asyncio.create_task(ask(request)) for request in (slow, steady)]
        slow.put(b" ")
        steady.put(b" " * 2**20)  # sixteen seconds more
        await tasks[0]
        assert slow.status == 408
        assert not steady.sent
        steady.put(b'{"inputs": "a"}', is_last=True)
        await tasks[1]
        assert steady.status == 200

    serve(encoder, scenario, body_timeout_s=0.1)


KEY = "0123456789abcdef-shop"


def test_without_a_key_no_body_is_read_or_counted(encoder, tmp_path):
    """A thousand such requests, all at once, beside one with a key."""
    keys = tmp_path / "keys"
    keys.write_text(f"shop {KEY}\n")
    asked = [
        ("GET", "/health"),
        ("HEAD", "/ready"),
        ("GET", "/"),
        ("POST", "/embed"),
        ("GET", "/metrics"),
        ("PUT", "/x"),
    ]

    async def scenario(service: Service, ask: Ask) -> None:
        silent = [Exchange(*asked[i % len(asked)], size=4 * 2**20) for i in range(1000)]
        tasks = [asyncio.create_task(ask(request)) for request in silent]
        quick = Exchange.whole({"inputs": "a"}, key=KEY)
        await ask(quick)
        assert quick.status == 200
        await asyncio.gather(*tasks)
        assert {request.status for request in silent} == {200, 401}
        assert not any(request.asked_for for request in silent)

    serve(encoder, scenario, keys, max_requests=2, max_held_bytes=1000)


def test_answers_that_are_held_count(encoder, monkeypatch):
    """Room for two texts' vectors, one a client; what a single request can never have is 413."""
    size = 2 * 4 * encoder.bundle.manifest.geometry.hidden_size + 512

    async def scenario(service: Service, ask: Ask) -> None:
        first, again = (Exchange.whole({"inputs": "a"}) for _ in range(2))
        (may_go_on, encode) = (asyncio.Event(), service.batcher.encode)

        async def slow(*words: Any) -> Any:
            await may_go_on.wait()
            return await encode(*words)

        monkeypatch.setattr(service.batcher, "encode", slow)
        task = asyncio.create_task(ask(first))
        await reading(first, 2)
        await ask(again)
        assert again.status == 429
        assert "holds answers of" in again.text
        other = Exchange.whole({"inputs": "a"}, client="other")
        may_go_on.set()
        await asyncio.gather(ask(other), task)
        assert (first.status, other.status) == (200, 200)
        too_much = Exchange.whole({"inputs": ["a", "b"]})
        await ask(too_much)
        assert too_much.status == 413
        assert "send the texts in parts, or ask for fewer heads" in too_much.text

    serve(encoder, scenario, max_result_bytes=2 * size)


def test_what_nobody_got_is_there_for_the_retry(encoder):
    """The client goes while its answer is sent, and asks again."""

    async def scenario(service: Service, ask: Ask) -> None:
        leaving = Exchange.whole({"inputs": TEXTS})

        async def send(message: dict[str, Any]) -> None:
            leaving.hang_up()
            await asyncio.Event().wait()

        leaving.send = send
        await ask(leaving)
        counted = b"\nm3_tokens_total %.1f\n" % encoder.encode(TEXTS).token_counts.sum()
        assert counted in service.metrics.page()
        again = Exchange.whole({"inputs": TEXTS})
        await ask(again)
        assert again.status == 200
        np.testing.assert_array_equal(np.array(json.loads(again.text), np.float32), encoder.encode(TEXTS).dense_vecs)
        assert counted in service.metrics.page()

    serve(encoder, scenario)


def test_what_is_under_way_when_the_drain_is_over_is_503(encoder, monkeypatch):
    async def scenario(service: Service, ask: Ask) -> None:
        async def never(*_: Any) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(service.batcher, "encode", never)
        sending, waiting = Exchange("POST", "/embed", 10), Exchange.whole({"inputs": "a"})
        tasks = [asyncio.create_task(ask(request)) for request in (sending, waiting)]
        await reading(sending)
        await reading(waiting, 2)
        service.stop()
        await asyncio.gather(*tasks)
        late = Exchange.whole({"inputs": "a"})
        await ask(late)
        for request in (sending, waiting, late):
            assert request.status == 503
            assert (b"retry-after", b"1") in request.sent[0]["headers"]
            assert "send it again" in request.text

    serve(encoder, scenario)


def test_a_text_may_have_two_million_characters(encoder):
    async def scenario(service: Service, ask: Ask) -> None:
        too_long = Exchange.whole({"inputs": ["a", "x" * (2**21 + 1)]})
        await ask(too_long)
        assert too_long.status == 413
        assert "inputs[1] has 2097153 characters, the limit is 2097152; split the text" in too_long.text

    serve(encoder, scenario)
