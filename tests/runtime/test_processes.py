"""Encoders in other processes: pickled by path, and after a fork."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
from multiprocessing import get_context

import numpy as np
import pytest

from m3_runtime import BundleNotFoundError, EngineError, M3Encoder, SpaceMismatchError
from m3_runtime.flag import BGEM3FlagModel

TEXTS = ["one", "two words", ""]


def first_numbers(encoder: M3Encoder) -> list[float]:
    """What a worker process is asked for."""
    return encoder.encode(TEXTS).dense_vecs[:, 0].tolist()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder))])
def test_what_arrives_is_open_and_the_same(encoder, again):
    with again(encoder) as other:
        assert other is not encoder
        assert other.opened_with == encoder.opened_with
        assert np.array_equal(other.encode(TEXTS).dense_vecs, encoder.encode(TEXTS).dense_vecs)


def test_how_it_was_opened_goes_with_it(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_bundle.parent)
    opening = {"variant": "onnx-int8", "threads": 2, "low_memory": True, "streams": 2, "cache_dir": tmp_path}
    with M3Encoder.open(tiny_bundle.name, **opening) as encoder:
        sent = pickle.dumps(encoder)
    monkeypatch.chdir(tmp_path)  # the path that it goes by is absolute
    with pickle.loads(sent) as other:
        known = other.opened_with
        assert (known.path, known.cache_dir) == (str(tiny_bundle), str(tmp_path))
        assert (known.variant, known.threads, known.low_memory, known.streams) == ("onnx-int8", 2, True, 2)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes(encoder, method):
    with get_context(method).Pool(1) as pool:
        assert pool.map(first_numbers, [encoder]) == [first_numbers(encoder)]


def test_a_flag_model_pickles_with_its_values(tiny_bundle):
    model = BGEM3FlagModel(tiny_bundle, variant="onnx-fp32", threads=1, query_instruction_for_retrieval="find ")
    other = pickle.loads(pickle.dumps(model))
    assert np.array_equal(other.encode_queries(TEXTS)["dense_vecs"], model.encode_queries(TEXTS)["dense_vecs"])
    other.close()
    model.close()


def test_a_folder_that_is_gone_or_holds_another_model_is_named(tiny_bundle, mini_bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    with M3Encoder.open(folder, variant="onnx-fp32", threads=1) as encoder:
        sent = pickle.dumps(encoder)
    shutil.rmtree(folder)
    with pytest.raises(BundleNotFoundError, match="bundle"):
        pickle.loads(sent)
    folder.symlink_to(mini_bundle)
    with pytest.raises(SpaceMismatchError, match=r"held the vector space .* and now holds"):
        pickle.loads(sent)


def test_an_encoder_made_of_an_engine_says_why_not(encoder):
    made = M3Encoder(encoder.bundle, encoder.variant, encoder.tokenizer, encoder.engine)
    with pytest.raises(EngineError, match="made of an engine"):
        pickle.dumps(made)


FORK = """
import os, signal, sys, threading
from m3_runtime import EngineError, M3Encoder

def opened():
    return M3Encoder.open(sys.argv[1], variant=sys.argv[2], threads=2)

def encode(encoder):
    return encoder.encode(["some words"] * 3).dense_vecs.tolist()

def close(encoder):
    encoder.close()
    try:
        encode(encoder)
    except EngineError as error:
        return "closed" in str(error) or "fork" in str(error)

def refused(encoder):
    try:
        encode(encoder)
    except EngineError as error:
        return "forked; open the bundle again" in str(error)

def again(encoder):
    with opened() as other:
        return encode(other) == expected

def again_or_refused(encoder):
    try:
        return again(encoder)
    except EngineError as error:  # OpenVINO was in the middle of a run, not between two
        return "openvino" in sys.argv[2] and "start workers with spawn" in str(error)

def in_child(action):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        signal.alarm(60)  # a hang is a failure, not a hung test
        if not action(encoder):
            os.abort()
        if action is close:
            sys.exit(0)  # with all that an interpreter takes apart
        os._exit(0)
    print(action.__name__, os.waitpid(child, 0)[1])

encoder = opened()
expected = encode(encoder)
for action in (lambda encoder: encode(encoder) == expected, close, again):
    in_child(action)

stop, started = threading.Event(), threading.Event()

def from_another_thread(work):
    started.clear()
    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(60)
    return thread

run, rest = encoder.engine.run, encoder.engine.rest
def run_until_stopped(*arguments):
    started.set()
    if stop.is_set():
        sys.exit()  # the thread
    return run(*arguments)
def rest_until_stopped(*arguments):
    started.set()
    stop.wait()
    rest(*arguments)

encoder.engine.run = run_until_stopped
busy = from_another_thread(lambda: encoder.encode(["busy words " * 100] * 20_000))
for action in (refused, again_or_refused, close) * 2:
    in_child(action)
stop.set()
busy.join()

encoder.engine.run, encoder.engine.rest = run, rest_until_stopped
stop.clear()
resting = from_another_thread(lambda: encoder.encode("some words"))
in_child(refused)
stop.set()
resting.join()
print("parent", int(encode(encoder) != expected))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize("variant", ["onnx-int8", "openvino-int8"])
def test_a_fork_works_or_says_at_once_that_it_cannot(tiny_bundle, variant):
    command = [sys.executable, "-c", FORK, str(tiny_bundle), variant]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, _ in lines] == [
        "<lambda>",
        "close",
        "again",
        *["refused", "again_or_refused", "close"] * 2,
        "refused",
        "parent",
    ]
    assert {status for _, status in lines} == {"0"}, done.stdout
