"""mini-reranker's FP32 scores are those of FlagEmbedding 1.4.2's FlagReranker, cut and uncut, in a batch and alone."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m3_runtime import M3Reranker
from m3_runtime.flag import FlagReranker

GOLDEN_FILE = Path(__file__).parents[1] / "golden" / "mini_reranker.json"
SCORE_ATOL = 1e-4  # before the sigmoid


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return json.loads(GOLDEN_FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pairs(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [(facts["queries"][query], facts["passages"][passage]) for query, passage in facts["pairs"]]


@pytest.fixture(scope="module")
def reranker(mini_reranker_bundle: Path, facts: dict[str, Any]) -> Iterator[M3Reranker]:
    with M3Reranker.open(mini_reranker_bundle, variant="onnx-fp32", threads=1) as opened:
        found, expected = opened.bundle.manifest.source.weights_sha256, facts["checkpoint"]["weights_sha256"]
        assert found == expected, "other weights; run tests/golden/make_reranker_golden.py again"
        yield opened


def test_scores(facts, pairs, reranker):
    scores = np.array([call["scores"] for call in facts["calls"]])
    assert (np.ptp(scores, axis=1) > 1).all()
    assert (np.abs(np.diff(scores, axis=0)).max(axis=1) > 0.1).all(), "a limit changes nothing"
    for call, expected in zip(facts["calls"], scores, strict=True):
        found = reranker.compute_score(pairs, normalize=False, **call["arguments"])
        np.testing.assert_allclose(found, expected, rtol=0, atol=SCORE_ATOL, err_msg=str(call["arguments"]))


def test_normalized_scores(facts, pairs, reranker):
    found = reranker.compute_score(pairs[1:9], normalize=True)  # none of them long
    np.testing.assert_allclose(found, facts["normalized"][1:9], rtol=0, atol=SCORE_ATOL / 4)


def test_flag_reranker(facts, pairs, mini_reranker_bundle):
    """The names of FlagEmbedding, and one pair as it takes it."""
    with closing(FlagReranker(mini_reranker_bundle, use_fp16=False, variant="onnx-fp32", threads=1)) as model:
        few = pairs[:4]
        np.testing.assert_allclose(model.compute_score(few), facts["calls"][0]["scores"][:4], rtol=0, atol=SCORE_ATOL)
        np.testing.assert_allclose(model.compute_score(pairs[0]), facts["one_pair"], rtol=0, atol=SCORE_ATOL)
