"""Parity measured on the user's own probe texts, however long or short those are."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_export.calibration.texts import chosen_texts
from m3_export.checkpoint.folder import Checkpoint
from m3_export.verify.budget import Budget
from m3_export.verify.measure import (
    MAX_PADDED_TOKENS,
    MAX_PROBE_TOKENS,
    PADDED_TEXTS,
    ParityCheck,
    Probe,
    ProbeTexts,
    padded_texts,
)
from m3_export.verify.reference import reference_outputs
from m3_runtime import Bundle
from m3_runtime.tokenizer import M3Tokenizer


@pytest.mark.parametrize(
    "texts",
    [[f"{'word ' * 150}{number}" for number in range(3)], ["one text"]],
    ids=["all over 128 tokens", "a single one of under 8 tokens"],
)
def test_any_probe_texts_will_do(
    tmp_path: Path, tiny_random_checkpoint: Path, tiny_bundle: Path, tokenizer: M3Tokenizer, texts: list[str]
):
    probe = tmp_path / "probe.jsonl"
    probe.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    chosen = chosen_texts(None, probe)
    assert [text.text for text in chosen.probe] == texts
    assert len(chosen.degenerate_probe) > 100

    checkpoint, manifest = Checkpoint.open(tiny_random_checkpoint), Bundle.open(tiny_bundle).manifest
    natural, degenerate = (
        ProbeTexts(ids, reference_outputs(checkpoint, ids, manifest.tokenizer.unused_ids, lambda rows: rows))
        for some in (chosen.probe, chosen.degenerate_probe)
        for ids in [tokenizer.encode_batch([text.text for text in some], MAX_PROBE_TOKENS).ids]
    )
    check = ParityCheck(manifest, Probe(natural, degenerate, "a digest", "this machine"), Budget.parse("balanced"))
    for variant in manifest.variants:
        parity, is_float = check.measure(variant, tiny_bundle).parity, variant.precision == "fp32"
        assert parity.texts == len(texts)
        assert min(parity.padded_dense_min, parity.batch_invariance_min) > (0.9999 if is_float else 0.99)
        assert (parity.degenerate is None) == is_float


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
