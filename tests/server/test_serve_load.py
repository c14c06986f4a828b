"""`m3-bench serve-load` against a running server: counts are right, and nothing but answers has a latency."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from m3_bench import documents
from m3_bench.cli import main
from m3_bench.documents import Load
from m3_bench.load import APIS, Answered, LoadRequest
from m3_runtime import M3Encoder

FEW = ("--texts", "3", "--words", "5", "--seconds", "0.5")


def load(*words: object) -> int:
    try:
        return main(["serve-load", *map(str, words)])
    except SystemExit as end:  # argparse's own way out
        return int(end.code or 0)


def test_a_closed_loop_counts_what_the_server_counts(server, tiny_bundle: Path, tmp_path: Path, capsys):
    before = server.metric("m3_requests_total")
    beside = ("--bundle", tiny_bundle, "--variant", "onnx-fp32", "--threads", 1)
    assert load(server.url, "--clients", 2, *FEW, *beside, "--pid", server.process.pid, "-o", tmp_path / "a.json") == 0
    found = documents.read_as(Load, tmp_path / "a.json")
    (stage,) = found.stages
    assert (stage.clients, stage.rate_per_s, stage.refusals_s, stage.errors) == (2, 0.0, (), {})
    assert 0 < len(stage.latencies_s) <= server.metric("m3_requests_total") - before
    assert len(stage.latencies_s) <= stage.texts <= 5 * len(stage.latencies_s)
    assert stage.tokens > 3 * stage.texts
    assert stage.cosine_min > 0.99999
    assert min(stage.resident_bytes) > 10_000_000
    printed = capsys.readouterr().out
    assert "| p50 |" in printed and "lowest cosine" in printed
    assert load(server.url, "-o", tmp_path / "a.json") == 2  # nothing is replaced unasked


@pytest.mark.parametrize("api", ["tei", "m3", "openai,m3"])
def test_an_open_loop_sends_at_its_rate_whatever_the_api(server, tiny_bundle: Path, tmp_path: Path, api):
    beside = ("--bundle", tiny_bundle, "--variant", "onnx-fp32", "--threads", 1)
    words = ("--rate", 40, "--api", api, *FEW, *beside, "-o", tmp_path / "a.json")
    assert load(server.url, *words) == 0
    (stage,) = documents.read_as(Load, tmp_path / "a.json").stages
    assert stage.clients == 0
    assert 8 <= len(stage.latencies_s) <= 35  # 40 requests/s for half a second, at random times
    assert stage.cosine_min > 0.99999


@pytest.mark.parametrize("value", [0.0, np.nan])
@pytest.mark.parametrize("head", ["dense", "colbert"])
def test_an_answer_with_a_vector_without_direction_is_wrong(tiny_bundle: Path, head, value):
    texts = ("some words", "more of them")
    with M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=1) as encoder:
        expected = encoder.encode(list(texts), return_sparse=True, return_colbert_vecs=True)
    right = {
        "dense": expected.dense_vecs,
        "sparse": expected.sparse.weights[None],
        "sparse_ids": expected.sparse.ids,
        "colbert": np.concatenate(expected.colbert_vecs),
    }
    request = LoadRequest(APIS["m3"], b"", texts, expected)
    assert request.cosine_min(Answered(right, 0)) > 0.99999
    broken = right[head].copy()
    broken[0] = value
    assert request.cosine_min(Answered(right | {head: broken}, 0)) <= 0


def test_a_sweep_doubles_the_clients_until_the_server_is_saturated(server, tmp_path: Path, capsys):
    assert load(server.url, "--sweep", *FEW, "-o", tmp_path / "a.json") == 0
    clients = [stage.clients for stage in documents.read_as(Load, tmp_path / "a.json").stages]
    assert clients == [2**n for n in range(len(clients))]
    assert len(clients) > 1
    assert "saturated at" in capsys.readouterr().err


@contextmanager
def answering(*statuses: int, when_asked: Callable[[], object] = int) -> Iterator[str]:
    """A server that answers one status after the other, and vectors in chunks where it answers 200."""
    turns = iter(range(10**6))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked = asked.get("inputs", [])
            when_asked()
            status = statuses[next(turns) % len(statuses)]
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            body = json.dumps([[1.0, 0.5]] * len(asked)).encode()
            for part in (body[:5], body[5:], b""):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


def test_refusals_and_errors_are_counted_and_never_averaged_into_latencies(tmp_path: Path):
    with answering(200, 429, 200, 500) as url:
        assert load(url, "--api", "tei", "--rate", 80, *FEW, "-o", tmp_path / "a.json") == 1
    (stage,) = documents.read_as(Load, tmp_path / "a.json").stages
    sent = len(stage.latencies_s) + len(stage.refusals_s) + stage.errors["500"]
    assert len(stage.latencies_s) == pytest.approx(sent / 2, abs=2)
    assert len(stage.refusals_s) == pytest.approx(sent / 4, abs=2)
    assert stage.retry_after == ("0",)
    assert stage.tokens == 0  # TEI does not say


def test_what_was_measured_before_an_interrupt_is_kept(tmp_path: Path, capsys):
    """Ctrl-C comes once a stage is written; a background process would not take it."""
    out, before = tmp_path / "a.json", signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupted = threading.Event()

    def interrupt() -> None:
        if out.exists() and not interrupted.is_set():
            interrupted.set()
            os.kill(os.getpid(), signal.SIGINT)

    try:
        with answering(200, when_asked=interrupt) as url:
            assert load(url, "--api", "tei", "--sweep", *FEW, "--seconds", "0.1", "--quiet", "-o", out) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "m3-bench: interrupted\n" in capsys.readouterr().err  # and what the server says of broken connections
    assert [stage.clients for stage in documents.read_as(Load, out).stages] == [1]


def test_answers_that_are_none_of_the_api_are_errors(capsys):
    with answering(200) as url:
        assert load(url, "--api", "m3", "--clients", 1, *FEW, "--seconds", "0.2") == 1
    printed = capsys.readouterr().out
    assert "| 1 clients | 0 |" in printed
    assert "× answer that is none of /m3/encode" in printed


def test_refusals_alone_are_no_failure():
    with answering(200, 429) as url:
        assert load(url, "--api", "tei", "--clients", 2, *FEW) == 0


def test_a_server_that_is_not_there_is_named(capsys):
    assert load("http://127.0.0.1:9", *FEW) == 1
    assert "127.0.0.1:9 does not answer (ConnectError)" in capsys.readouterr().err
    assert load("http://127.0.0.1:9", "--api", "tei", *FEW) == 1
    assert "× ConnectError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("localhost:8080",), "expected http://HOST:PORT"),
        (("http://localhost", "--clients", "0"), "--clients: expected an integer from 1 to 2147483647, got '0'"),
        (("http://localhost", "--rate", "0"), "--rate: expected a number above 0, at most 1000000, got '0'"),
        (("http://localhost", "--seconds", "inf"), "--seconds: expected a number above 0, at most 1000000, got 'inf'"),
        (("http://localhost", "--variant", "onnx-fp32"), "--variant is for --bundle DIR, which is not given"),
        (("http://localhost", "--api", "tei", "--model", "m"), "--model is for OpenAI's API"),
        (("http://localhost", "--api", "grpc"), "--api grpc: expected some of openai, tei, m3"),
        (("http://localhost", "--api", "tei", "--pid", str(2**22 + 1)), "--pid: "),
        (("http://localhost", "--key-file", "none.txt"), "--key-file 'none.txt'"),
        (("http://localhost", "-o", "no/such/folder.json"), "does not exist"),
    ],
)
def test_a_bad_command_line_is_refused(words, message, capsys):
    assert load(*words) == 2
    assert message in capsys.readouterr().err
