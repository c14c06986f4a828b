"""Ctrl-C while an engine computes."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from m3_runtime import BundleNotFoundError, EngineError, M3Encoder
from m3_runtime.bundle.manifest import Head
from m3_runtime.cli.interrupt import interruptible
from patience import PATIENCE_S


def opened(tiny_bundle):
    return interruptible(lambda: M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=1))


def test_the_vectors_are_the_same(tiny_bundle, encoder, texts):
    before = set(threading.enumerate())
    with opened(tiny_bundle) as other:
        flags = {"return_sparse": True, "return_colbert_vecs": True}
        ours, expected = other.encode(texts, **flags), encoder.encode(texts, **flags)
        np.testing.assert_array_equal(ours.dense_vecs, expected.dense_vecs)
        assert ours.lexical_weights == expected.lexical_weights
        assert other.compute_score(("a", "b")) == encoder.compute_score(("a", "b"))
    assert not any(thread.name.startswith("m3-engine") for thread in set(threading.enumerate()) - before)


def test_what_an_engine_raises_arrives(tiny_bundle):
    with opened(tiny_bundle) as other:
        with pytest.raises(EngineError):
            other.encode_ids([np.array([0, 2**30, 2], np.int32)], {Head.DENSE})
        assert other.encode("a text").dense_vecs is not None


# Each way in a process of its own, which ends although a thread of it never does.
INTERRUPTED = """
import os, signal, sys, threading, traceback
from m3_runtime import M3Encoder
from m3_runtime.cli.interrupt import InterruptibleEngine, end_without_waiting, interruptible

encoder = M3Encoder.open(sys.argv[1], variant="onnx-fp32", threads=1)
never = threading.Event()

class Endless:
    packed_tokens = 0

    def __init__(self, streams):
        self.streams, self.meeting = streams, threading.Barrier(streams)

    def run(self, batch, outputs):
        if self.meeting.wait() == 0:  # all of them compute now
            os.kill(os.getpid(), signal.SIGINT)
        never.wait()

    def close(self):
        os._exit(2)

def runs(streams):
    engine = InterruptibleEngine(Endless(streams))
    with M3Encoder(encoder.bundle, encoder.variant, encoder.tokenizer, engine) as other:
        other.encode(["a text", "a longer text by far", "and the longest text of all of them"], 1)

def opening():
    interruptible(lambda: (os.kill(os.getpid(), signal.SIGINT), never.wait()))

for action in (lambda: runs(1), lambda: runs(2), opening):
    child = os.fork()
    if not child:
        signal.alarm(60)  # a hang is a failure, not a hung test
        try:
            action()
        except KeyboardInterrupt:
            end_without_waiting(130)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
end_without_waiting(1)  # nothing was left behind here
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_an_interrupt_waits_neither_for_runs_nor_for_the_opening(tiny_bundle):
    """Nor does the process that ends after it; and no engine is closed while it computes."""
    command = [sys.executable, "-c", INTERRUPTED, tiny_bundle]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout.split()) == (0, ["130", "130", "130"]), done.stderr


def test_what_opening_raises_arrives(tmp_path):
    with pytest.raises(BundleNotFoundError):
        interruptible(lambda: M3Encoder.open(tmp_path / "nothing"))
