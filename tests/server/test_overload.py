"""Too many clients, clients that go away, and the end of a server under load."""

import json
from concurrent.futures import ThreadPoolExecutor
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
from patience import PATIENCE_S, wait_until

FLOAT_NOISE = 1e-5


def until(server: Running, name: str, value: float) -> None:
    wait_until(lambda: server.metric(name) == value, lambda: f"{name} is {server.metric(name)}, not {value}")


def test_five_times_the_capacity_gets_right_answers_or_429(tiny_bundle: Path, tmp_path: Path):
    """serve-load finds the capacity, offers five times that, and looks at every answer; here for some seconds."""
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32", "--max-queue-tokens", "16384") as server:
        beside = ["--bundle", str(tiny_bundle), "--variant", "onnx-fp32", "--threads", "1"]
        words = ["--times", "5", "--seconds", "2", "--api", "openai,openai,openai,m3", *beside]
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


def test_sigterm_under_load_loses_nothing_that_was_taken(tiny_bundle: Path, tmp_path: Path, encoder):
    texts = [[f"{client} {'wort ' * (5 + n)}" for n in range(40)] for client in range(8)]
    # a deadline that a machine under load can keep: else it says 429 at once
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32", "--deadline-s", "600") as server:

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
    assert "the folder does not exist" in words(1, str(tmp_path / "none"))
    assert f"cannot listen on 127.0.0.1:{server.port}" in words(2, bundle, "--port", str(server.port))
    keys.write_text("# none\n")
    assert "holds no key; write one on each line" in words(2, bundle, "--port", "0", "--api-key-file", str(keys))
    keys.write_text("short\n")
    assert "line 1 of the key file" in words(2, bundle, "--port", "0", "--api-key-file", str(keys))
    assert "max_length is 1000000" in words(2, bundle, "--port", "0", "--max-length", "1000000")
