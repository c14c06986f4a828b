"""Ctrl-C while an engine computes."""

import os
import signal
import threading

import numpy as np
import pytest

from m3_runtime import BundleNotFoundError, EngineError, M3Encoder
from m3_runtime.bundle.manifest import Head
from m3_runtime.cli.interrupt import InterruptibleEngine, interruptible
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


@pytest.fixture
def takes_interrupts():
    """As in a terminal: where the tests run in the background, Ctrl-C means nothing to their process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("takes_interrupts")
@pytest.mark.parametrize("streams", [1, 2])
def test_an_interrupt_does_not_wait_for_the_runs(encoder, monkeypatch, streams):
    """The runs end only after the interrupt has been seen; the engine is not closed under them."""
    go_on, ended, meeting = threading.Event(), threading.Semaphore(0), threading.Barrier(streams)
    real = encoder.engine

    class Waiting:
        packed_tokens = real.packed_tokens

        def __init__(self):
            self.streams = streams

        def run(self, batch, outputs):
            if meeting.wait(PATIENCE_S) == 0:  # all of them compute now
                os.kill(os.getpid(), signal.SIGINT)
            assert go_on.wait(PATIENCE_S)
            found = real.run(batch, outputs)
            ended.release()
            return found

        def close(self):
            raise AssertionError("closed while it computes")

    monkeypatch.setattr("m3_runtime.cli.interrupt._abandoned", [])
    engine = InterruptibleEngine(Waiting())
    other = M3Encoder(encoder.bundle, encoder.variant, encoder.tokenizer, engine)
    with pytest.raises(KeyboardInterrupt), other:
        other.encode(["a text", "a longer text by far", "and the longest text of all of them"], 1)
    assert engine.is_abandoned
    go_on.set()
    for _ in range(streams):
        assert ended.acquire(timeout=PATIENCE_S)


@pytest.mark.usefixtures("takes_interrupts")
def test_an_interrupt_does_not_wait_for_the_opening(monkeypatch):
    go_on = threading.Event()

    def opened_late():
        os.kill(os.getpid(), signal.SIGINT)
        assert go_on.wait(PATIENCE_S)

    abandoned: list[object] = []
    monkeypatch.setattr("m3_runtime.cli.interrupt._abandoned", abandoned)
    with pytest.raises(KeyboardInterrupt):
        interruptible(opened_late)
    assert abandoned
    go_on.set()


def test_what_opening_raises_arrives(tmp_path):
    with pytest.raises(BundleNotFoundError):
        interruptible(lambda: M3Encoder.open(tmp_path / "nothing"))
