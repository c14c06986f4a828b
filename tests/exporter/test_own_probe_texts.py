"""Exports that are measured on the user's own probe texts, however long or short those are."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_export.cli import main
from m3_export.verify.measure import MAX_PADDED_TOKENS, PADDED_TEXTS, padded_texts
from m3_runtime import Bundle


@pytest.mark.parametrize(
    "texts",
    [[f"{'word ' * 150}{number}" for number in range(3)], ["one text"]],
    ids=["all over 128 tokens", "a single one of under 8 tokens"],
)
def test_any_probe_texts_will_do(tmp_path: Path, tiny_random_checkpoint: Path, texts: list[str]):
    probe = tmp_path / "probe.jsonl"
    probe.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    flags = ["--variants", "onnx-fp32", "--heads", "dense", "--quiet", "--probe-texts", str(probe)]
    assert main([str(tiny_random_checkpoint), str(tmp_path / "bundle"), *flags]) == 0
    parity = Bundle.open(tmp_path / "bundle").manifest.parity["onnx-fp32"]
    assert parity.texts == len(texts)
    assert min(parity.padded_dense_min, parity.batch_invariance_min) > 0.9999


@given(st.lists(st.integers(2, 600), min_size=1, max_size=100))
def test_as_many_texts_are_padded_as_promised_and_short_ones_if_there_are_any(lengths: list[int]):
    chosen = padded_texts(lengths)
    short = [length for length in lengths if length <= MAX_PADDED_TOKENS]
    assert len(set(chosen)) == len(chosen) == min(PADDED_TEXTS, len(short) or len(lengths))
    taken = [lengths[i] for i in chosen]
    assert taken == sorted(taken)
    if short:
        assert (taken[0], taken[-1]) == (min(short), max(short)) or len(taken) == 1
    else:
        assert taken == sorted(lengths)[:PADDED_TEXTS]
