"""Too many clients, clients that go away, and the end of a server under load."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx2
import numpy as np
import pytest
from running import Running, running

from m3_bench import documents
from m3_bench.cli import main as bench_main
from m3_bench.documents import Load
from m3_runtime.cli import main
from m3_runtime.server import serving
from m3_runtime.server.protocol import raise_file_limit
from patience import PATIENCE_S, wait_until

FLOAT_NOISE = 1e-5


def until(server: Running, name: str, value: float) -> None:
    wait_until(lambda: server.metric(name) == value, lambda: f"{name} is {server.metric(name)}, not {value}")


def test_five_times_the_capacity_gets_right_answers_or_429(tiny_bundle: Path, tmp_path: Path):
    """serve-load finds the capacity, offers five times that, and looks at every answer; here for a second each."""
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32", "--max-queue-tokens", "16384") as server:
        beside = ["--bundle", str(tiny_bundle), "--variant", "onnx-fp32", "--threads", "1"]
        words = ["--times", "5", "--seconds", "1", "--api", "openai,openai,openai,m3", *beside]
        output = tmp_path / "load.json"
        assert bench_main(["serve-load", server.url, *words, "--pid", str(server.process.pid), "-o", str(output)]) == 0
        stage = documents.read_as(Load, output).stages[-1]
        assert stage.latencies_s and stage.refusals_s
        assert not stage.errors
        assert stage.cosine_min >= 0.99999
        assert all(int(seconds) >= 1 for seconds in stage.retry_after)
        assert max(stage.resident_bytes) - stage.resident_bytes[0] < 50 * 2**20
        until(server, "m3_queue_tokens", 0)


def test_who_goes_away_leaves_the_queue(server):
    body = json.dumps({"inputs": ["wort " * 150] * 40, "truncate": True}).encode()
    head = f"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    lines = [server.connection() for _ in range(10)]
    for line in lines:
        line.sendall(head.encode() + body)
    for line in lines:
        line.close()
    until(server, "m3_queue_tokens", 0)
    wait_until(lambda: 'm3_requests_total{route="/embed",status="499"}' in server.client.get("/metrics").text)
    assert server.post("/embed", {"inputs": "still here"}).status_code == 200


def test_sigterm_under_load_loses_nothing_that_can_be_done_in_time(tiny_bundle: Path, tmp_path: Path, encoder):
    texts = [[f"{client} {'wort ' * (5 + n)}" for n in range(40)] for client in range(8)]
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32", "--drain-s", "600") as server:

        def ask(some: list[str]) -> httpx2.Response:
            with httpx2.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as http:
                return http.post("/embed", json={"inputs": some})

        with ThreadPoolExecutor(len(texts)) as clients:
            calls = [clients.submit(ask, some) for some in texts]
            # until all have been taken
            wait_until(lambda: server.metric("m3_queue_texts") + server.metric("m3_texts_total") >= 8 * 40)
            server.terminate()
            for call, some in zip(calls, texts, strict=True):
                assert call.result().status_code == 200
                found = np.array(call.result().json(), np.float32)
                np.testing.assert_allclose(found, encoder.encode(some).dense_vecs, atol=FLOAT_NOISE)
        server.process.wait(PATIENCE_S)
        with pytest.raises(httpx2.TransportError):
            server.client.get("/health")


def test_what_the_drain_has_no_time_for_is_503(tiny_bundle: Path, tmp_path: Path):
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32", "--drain-s", "0") as server:

        def ask() -> httpx2.Response:
            with httpx2.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as http:
                return http.post("/embed", json={"inputs": ["wort " * 100] * 2048})

        with ThreadPoolExecutor(1) as clients, server.connection() as silent:
            head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"
            silent.sendall(head)
            call = clients.submit(ask)
            wait_until(lambda: server.metric("m3_queue_texts") > 1000)
            server.terminate()
            assert call.result().status_code == 503
            assert call.result().headers["retry-after"] == "1"
            assert b" 503 " in silent.recv(65536)
        server.process.wait(PATIENCE_S)


def test_sigterm_while_loading_ends_at_once(tiny_bundle: Path, tmp_path: Path):
    """As process 1 of a container, to which signals without a handler mean nothing."""
    command = [sys.executable, "-m", "m3_runtime", "serve", str(tiny_bundle), "--port", "0", "--variant", "onnx-fp32"]
    ignore = "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True)"
    words = [sys.executable, "-c", f"{ignore}; os.execv({command[0]!r}, {command!r})"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    process.stdout.readline()

    def has_ended() -> bool:
        process.terminate()
        return process.poll() is not None

    wait_until(has_ended)
    process.stdout.close()
    assert process.returncode == 128 + signal.SIGTERM
    assert "serving" not in (tmp_path / "log").read_text()


KEY = "0123456789abcdef-shop"


def test_a_thousand_silent_connections_keep_nobody_out(tiny_bundle: Path, tmp_path: Path):
    """Each announces a body that never comes, without a key."""
    raise_file_limit()
    keys = tmp_path / "keys"
    keys.write_text(f"shop {KEY}\n")
    heads = [
        f"{word} HTTP/1.1\r\nhost: x\r\ncontent-length: 4194304\r\n\r\n".encode()
        for word in ("GET /health", "GET /ready", "HEAD /", "POST /embed", "GET /info")
    ]
    words = ("--variant", "onnx-fp32", "--api-key-file", str(keys), "--max-requests", "4")
    with running(tiny_bundle, tmp_path, *words) as server, ExitStack() as lines:
        for i in range(1000):
            line = lines.enter_context(server.connection())
            line.sendall(heads[i % len(heads)])
            if i % 100 == 0:
                assert server.post("/embed", {"inputs": "a"}, authorization=f"Bearer {KEY}").status_code == 200
        assert server.post("/embed", {"inputs": "a"}, authorization=f"Bearer {KEY}").status_code == 200
        assert server.client.get("/health").status_code == 200


def test_the_longest_request_of_openai_is_answered_and_queries_beside_it(tiny_bundle: Path, tmp_path: Path, encoder):
    """2048 texts, 300 000 tokens, default settings."""
    two = ["wort " * 30, "wort " * 31]
    texts = [text for text in two for _ in range(1024)]
    assert 1024 * sum(ids.size for ids in encoder.tokenizer.encode_batch(two, 512).ids) > 300_000
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32") as server:
        model = server.client.get("/v1/models").json()["data"][0]["id"]
        assert 1 <= server.client.get("/info").json()["max_client_batch_size"] <= 2048

        def ask(some: list[str]) -> tuple[float, list[dict]]:
            with httpx2.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as http:
                answer = http.post("/v1/embeddings", json={"model": model, "input": some})
            assert answer.status_code == 200, answer.text
            return time.monotonic(), answer.json()["data"]

        with ThreadPoolExecutor(1) as clients:
            long = clients.submit(ask, texts)
            wait_until(lambda: server.metric("m3_queue_texts") > 1000)
            query_s, _ = ask(["a query"])
            long_s, vectors = long.result()
        assert query_s < long_s
        assert len(vectors) == 2048
        expected = encoder.encode(two).dense_vecs
        for place, row in ((0, 0), (1023, 0), (1024, 1), (2047, 1)):
            np.testing.assert_allclose(vectors[place]["embedding"], expected[row], atol=FLOAT_NOISE)


def test_before_it_stops_it_says_so_and_still_answers(tiny_bundle: Path, tmp_path: Path):
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32", "--drain-delay-s", "600") as server:
        server.terminate()
        wait_until(lambda: server.client.get("/ready").status_code == 503)
        assert server.post("/embed", {"inputs": "a"}).status_code == 200
        assert server.client.get("/health").status_code == 200
        server.terminate()  # who cannot wait
        server.process.wait(PATIENCE_S)


def test_it_stops_when_the_delay_is_over(tiny_bundle: Path, tmp_path: Path):
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32", "--drain-delay-s", "1") as server:
        server.terminate()
        server.process.wait(PATIENCE_S)


def test_two_servers_share_a_bundle(tiny_bundle: Path, tmp_path: Path, server):
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32") as other:
        body = {"texts": ["one bundle", "two servers"]}
        assert server.post("/m3/encode", body).content == other.post("/m3/encode", body).content


def test_what_cannot_be_served_says_why(tiny_bundle: Path, tmp_path: Path, server, monkeypatch, capsys):
    monkeypatch.setattr(serving, "log_to_stderr", lambda _: None)  # pytest's own logging stays

    def words(code: int, *more: str) -> str:
        assert main(["serve", *more]) == code
        return capsys.readouterr().err

    bundle, keys = str(tiny_bundle), tmp_path / "keys"
    assert "the folder does not exist" in words(2, str(tmp_path / "none"))
    assert f"cannot listen on 127.0.0.1:{server.port}" in words(2, bundle, "--port", str(server.port))
    keys.write_text("# none\n")
    assert "holds no key; write one on each line" in words(2, bundle, "--port", "0", "--api-key-file", str(keys))
    keys.write_text("short\n")
    assert "line 1 of the key file" in words(2, bundle, "--port", "0", "--api-key-file", str(keys))
    assert "max_length is 1000000" in words(2, bundle, "--port", "0", "--max-length", "1000000")
    assert "choose another --metrics-port" in words(2, bundle, "--port", "8080", "--metrics-port", "8080")
    small = words(2, bundle, "--port", "0", "--max-queue-tokens", "100")
    assert "the queue takes 100 tokens, but a text may have 512; raise --max-queue-tokens" in small
