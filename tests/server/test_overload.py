"""Too many clients, clients that go away, and the end of a server under load."""

import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
import uvicorn
from running import Running, running

from m3_runtime.server import protocol

FLOAT_NOISE = 1e-5
SMALL = ("--variant", "onnx-fp32", "--max-queue-tokens", "300")


@pytest.fixture(scope="module")
def small(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory):
    """A server whose queue holds three of the requests below."""
    with running(tiny_bundle, tmp_path_factory.mktemp("small"), *SMALL) as started:
        yield started


def until(server: Running, name: str, value: float, limit_s: float = 60) -> None:
    end_s = time.monotonic() + limit_s
    while server.metric(name) != value:
        assert time.monotonic() < end_s, f"{name} is {server.metric(name)}, not {value}"
        time.sleep(0.05)


def passages(number: int) -> list[str]:
    """Four texts of some twenty tokens, others for each number."""
    return [f"client {number} says {'yes no '[: 3 + part]}{number * part}" for part in range(4)]


def test_five_times_too_many_clients_get_right_answers_or_429(small, encoder):
    """16 clients that never pause, each with a third of what may wait."""
    before_mib = small.resident_mib()
    answers: dict[int, httpx2.Response] = {}

    def ask(client: int) -> None:
        with httpx2.Client(base_url=small.url, timeout=120, trust_env=False) as http:
            for turn in range(12):
                number = 100 * client + turn
                answers[number] = http.post("/embed", json={"inputs": passages(number)})

    with ThreadPoolExecutor(16) as clients:
        list(clients.map(ask, range(16)))
    statuses = [answer.status_code for answer in answers.values()]
    assert set(statuses) == {200, 429}, statuses
    assert len(statuses) == 16 * 12
    for number, answer in answers.items():
        if answer.status_code == 200:
            expected = encoder.encode(passages(number)).dense_vecs
            np.testing.assert_allclose(np.array(answer.json(), np.float32), expected, atol=FLOAT_NOISE)
        else:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error_type"] == "Overloaded"
            assert "the server is busy" in answer.json()["error"]
    assert small.resident_mib() - before_mib < 50
    until(small, "m3_queue_tokens", 0)


def test_who_goes_away_leaves_the_queue(server):
    body = json.dumps({"inputs": ["wort " * 150] * 40, "truncate": True}).encode()
    head = f"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    lines = [server.connection() for _ in range(10)]
    for line in lines:
        line.sendall(head.encode() + body)
    for line in lines:
        line.close()
    until(server, "m3_queue_tokens", 0)
    end_s = time.monotonic() + 30
    while 'm3_requests_total{route="/embed",status="499"}' not in server.client.get("/metrics").text:
        assert time.monotonic() < end_s
        time.sleep(0.05)
    assert server.post("/embed", {"inputs": "still here"}).status_code == 200


def test_sigterm_under_load_loses_nothing_that_was_taken(tiny_bundle: Path, tmp_path: Path, encoder):
    texts = [[f"{client} {'wort ' * (5 + n)}" for n in range(40)] for client in range(8)]
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32") as server:

        def ask(some: list[str]) -> httpx2.Response:
            with httpx2.Client(base_url=server.url, timeout=120, trust_env=False) as http:
                return http.post("/embed", json={"inputs": some})

        with ThreadPoolExecutor(len(texts)) as clients:
            calls = [clients.submit(ask, some) for some in texts]
            end_s = time.monotonic() + 60
            while server.metric("m3_queue_texts") + server.metric("m3_texts_total") < 8 * 40:
                assert time.monotonic() < end_s  # until all have been taken
            server.terminate()
            for call, some in zip(calls, texts, strict=True):
                assert call.result().status_code == 200
                found = np.array(call.result().json(), np.float32)
                np.testing.assert_allclose(found, encoder.encode(some).dense_vecs, atol=FLOAT_NOISE)
        server.process.wait(30)
        with pytest.raises(httpx2.TransportError):
            server.client.get("/health")


def test_before_it_stops_it_says_so_and_still_answers(tiny_bundle: Path, tmp_path: Path):
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32", "--drain-delay-s", "2") as server:
        server.terminate()
        end_s = time.monotonic() + 10
        while (status := server.client.get("/ready").status_code) != 503:
            assert status == 200 and time.monotonic() < end_s
        assert server.post("/embed", {"inputs": "a"}).status_code == 200
        assert server.client.get("/health").status_code == 200
        server.process.wait(60)


def test_two_servers_share_a_bundle(tiny_bundle: Path, tmp_path: Path, server):
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32") as other:
        body = {"texts": ["one bundle", "two servers"]}
        assert server.post("/m3/encode", body).content == other.post("/m3/encode", body).content


def test_what_cannot_be_served_says_why(tiny_bundle: Path, tmp_path: Path, server):
    def words(*more: str) -> str:
        command = [sys.executable, "-m", "m3_runtime", "serve", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 1
        return done.stderr

    bundle = str(tiny_bundle)
    assert "the folder does not exist" in words(str(tmp_path / "none"))
    assert f"cannot listen on 127.0.0.1:{server.port}" in words(bundle, "--port", str(server.port))
    (tmp_path / "keys").write_text("# none\n")
    assert "holds no key; write one on each line" in words(
        bundle, "--port", "0", "--api-key-file", str(tmp_path / "keys")
    )
    (tmp_path / "keys").write_text("short\n")
    assert "line 1 of the key file" in words(bundle, "--port", "0", "--api-key-file", str(tmp_path / "keys"))
    assert "max_length is 1000000" in words(bundle, "--port", "0", "--max-length", "1000000")


def test_headers_that_never_end_are_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    """uvicorn itself would wait for ever. A connection that only idles between requests is left alone."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_S", 1.0)
    config = uvicorn.Config(app, port=0, http=protocol.PatientProtocol, lifespan="off", log_config=None, ws="none")
    at = config.bind_socket()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([at],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        address = at.getsockname()
        idle = socket.create_connection(address, timeout=20)
        slow = socket.create_connection(address, timeout=20)
        silent = socket.create_connection(address, timeout=20)
        for line in (idle, slow):
            line.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b" 204 " in line.recv(4096)
        slow.sendall(b"GET / HT")
        assert slow.recv(4096) == silent.recv(4096) == b""  # closed
        idle.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b" 204 " in idle.recv(4096)
        for line in (idle, slow, silent):
            line.close()
    finally:
        server.should_exit = True
        thread.join(20)
        at.close()
