"""Parent and worker, in processes of their own."""

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from m3_bench.errors import WorkerError
from m3_bench.worker_process import Command, WorkerProcess, own
from m3_bench.workers.serve import Request
from m3_runtime import M3Encoder

# A worker whose library prints wherever it can, fails when asked to, and dies when asked to.
NOISY = """
import os, subprocess, sys
from m3_bench.workers.serve import Encoder, serve

class Noisy(Encoder):
    packages = ("numpy",)

    def __init__(self, broken=False):
        print("loading", flush=True)
        if broken:
            raise FileNotFoundError("no weights here")

    def run(self, texts, heads):
        print("from Python", flush=True)
        os.write(1, b"from C\\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        if "raise" in texts:
            raise RuntimeError("a batch too many")
        if "die" in texts:
            sys.stderr.write("these are my last words\\n")
            sys.stderr.flush()
            os._exit(3)
        if "be killed" in texts:
            os.kill(os.getpid(), 9)
        if "lie" in texts:
            os.write(answers, b"done!\\n")
        return texts

    def work(self, texts):
        return float(len(texts))

answers = os.dup(1)
serve(Noisy)
"""


@pytest.fixture
def noisy(tmp_path, monkeypatch) -> Command:
    (tmp_path / "noisy.py").write_text(NOISY)
    monkeypatch.chdir(tmp_path)
    return Command(Path(sys.executable), "noisy", {})


def asked(*batches: str) -> Request:
    return Request(tuple((text,) for text in batches), ("dense",))


def test_a_bundle_is_encoded_in_the_worker_as_it_is_here(tiny_bundle):
    batches = (("what is a vector model", "the search"), ("向量 检索",))
    command = own("ours", bundle=str(tiny_bundle), variant="onnx-fp32", threads=1)
    with WorkerProcess.start("ours", command, 1) as worker:
        reply = worker.ask(Request(batches, ("dense", "sparse", "colbert")))
        vectors = worker.vectors(batches[0], ("dense", "sparse", "colbert"))
        assert worker.versions.keys() == {"onnxruntime", "tokenizers", "numpy"}
    with M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=1) as encoder:
        found = [encoder.encode(list(batch)) for batch in batches]
    assert reply.work == tuple(float(encoding.token_counts.sum()) for encoding in found)
    np.testing.assert_allclose(vectors.dense, found[0].dense_vecs, atol=1e-6)
    assert [len(rows) + 1 for rows in vectors.colbert] == found[0].token_counts.tolist()
    assert len(reply.seconds) == len(batches)
    assert all(seconds > 0 for seconds in reply.seconds)
    assert reply.peak_bytes >= reply.resident_bytes > 2**20


def test_what_libraries_print_stays_out_of_the_protocol(noisy):
    with WorkerProcess.start("noisy", noisy, 1) as worker:
        reply = worker.ask(asked("one", "two"))
        stderr = worker.stderr()
    assert reply.work == (1.0, 1.0)
    assert set(stderr.split("\n")) >= {"loading", "from Python", "from C", "from a child"}


def test_a_failed_request_is_an_error_and_the_next_one_is_answered(noisy):
    with WorkerProcess.start("noisy", noisy, 1) as worker:
        with pytest.raises(WorkerError, match="noisy: RuntimeError: a batch too many"):
            worker.ask(asked("raise"))
        assert worker.ask(asked("one")).work == (1.0,)


def test_a_worker_that_dies_leaves_its_last_words(noisy):
    with (
        WorkerProcess.start("noisy", noisy, 1) as worker,
        pytest.raises(WorkerError, match=r"exit code 3(.|\n)*these are my last words"),
    ):
        worker.ask(asked("die"))


def test_a_killed_worker_is_said_to_be_killed(noisy):
    with (
        WorkerProcess.start("noisy", noisy, 1) as worker,
        pytest.raises(WorkerError, match="noisy was ended by SIGKILL; is there enough memory"),
    ):
        worker.ask(asked("be killed"))


def test_an_answer_that_is_no_message_is_an_error(noisy):
    with (
        WorkerProcess.start("noisy", noisy, 1) as worker,
        pytest.raises(WorkerError, match="noisy broke the protocol"),
    ):
        worker.ask(asked("lie"))


def test_a_model_that_does_not_load_is_named(noisy):
    broken = Command(noisy.python, noisy.module, {"broken": True})
    with (
        pytest.raises(WorkerError, match="noisy: FileNotFoundError: no weights here"),
        WorkerProcess.start("noisy", broken, 1),
    ):
        pass


def test_a_python_that_is_not_there_is_named():
    nowhere = Command(Path("no/python"), "noisy", {})
    with pytest.raises(WorkerError, match="noisy does not start"), WorkerProcess.start("noisy", nowhere, 1):
        pass


def test_leaving_ends_the_process(noisy):
    with WorkerProcess.start("noisy", noisy, 1):
        (worker,) = (child for child in psutil.Process().children() if "noisy" in child.cmdline())
        assert worker.is_running()
    assert not worker.is_running()
