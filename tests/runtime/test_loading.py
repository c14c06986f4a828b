"""Tokenizer and engine load side by side, and what one of them fails with comes out."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from m3_runtime import Bundle, BundleFormatError, EngineError, M3Encoder, opened_model
from m3_runtime.bundle.manifest import Head
from m3_runtime.engines import TokenBatch
from m3_runtime.engines.select import open_engine
from m3_runtime.tokenizer import M3Tokenizer
from patience import PATIENCE_S

VARIANTS = ["onnx-fp32", "onnx-int8", "openvino-int8"]


def threads_left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("m3-loading")]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_tokenizer_opens_while_the_engine_does(tiny_bundle, monkeypatch, variant):
    """The engine's opening is not over before the tokenizer's, which begins when the engine is busy."""
    is_open, order = threading.Event(), []

    def slow_engine(bundle, variant, threads, opening):
        def on_busy() -> None:
            order.append("busy")
            opening.on_busy()
            assert is_open.wait(PATIENCE_S), "nobody opened the tokenizer meanwhile"

        return open_engine(bundle, variant, threads, replace(opening, on_busy=on_busy))

    class Told(M3Tokenizer):
        @classmethod
        def open(cls, path, info):
            order.append("tokenizer")
            opened = super().open(path, info)
            is_open.set()
            return opened

    monkeypatch.setattr(opened_model, "open_engine", slow_engine)
    monkeypatch.setattr(opened_model, "M3Tokenizer", Told)
    with M3Encoder.open(tiny_bundle, variant=variant, threads=1) as encoder:
        assert np.isfinite(encoder.encode("a text").dense_vecs).all()
    assert order == ["busy", "tokenizer"]
    assert threads_left() == []


def test_an_engine_that_fails_is_what_comes_out(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    broken = replace(bundle.variant("onnx-fp32"), graph="config.json")
    with pytest.raises(EngineError, match=r"cannot load 'config\.json'"):
        M3Encoder.from_bundle(bundle, broken, 1)
    assert threads_left() == []


def test_an_engine_is_closed_if_the_tokenizer_fails(tiny_bundle, monkeypatch):
    engines = []

    def kept(*arguments):
        engines.append(open_engine(*arguments))
        return engines[-1]

    monkeypatch.setattr(opened_model, "open_engine", kept)
    bundle = Bundle.open(tiny_bundle)
    strange = replace(bundle.manifest, tokenizer=replace(bundle.manifest.tokenizer, cls_id=7))
    with pytest.raises(BundleFormatError, match="turns an empty text into"):
        M3Encoder.from_bundle(replace(bundle, manifest=strange), bundle.variant("onnx-fp32"), 1)
    with pytest.raises(EngineError, match="closed"):
        engines[0].run(TokenBatch(np.array([[0, 2]]), np.ones((1, 2), np.int64)), [Head.DENSE])
    assert threads_left() == []
