"""A reranker's bundle: its graph, engines and figures against transformers' own model."""

import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from export_command import FEW, export
from graphs import opened
from test_graph import UNUSED, checkpoint_of, padded, session_of, texts_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from m3_export.calibration.pairs import ChosenPairs
from m3_export.calibration.statistics import CALIBRATION_TOKENS, gather_statistics
from m3_export.calibration.texts import chosen_texts
from m3_export.graph import passes
from m3_export.graph.model import M3Model
from m3_export.pipeline import Export
from m3_export.plan.plan import DYNAMIC, FLOAT, Kind, PrecisionPlan, Projection, read_plans
from m3_export.plan.simulation import QuantizedModel, Simulation
from m3_export.report import export_text
from m3_export.verify.budget import ScoreBudget, excesses
from m3_export.verify.reference import reference_scores
from m3_export.verify.scores import ScoreCorrection
from m3_runtime import M3Reranker
from m3_runtime.bundle.manifest import Head, Pooling
from m3_runtime.bundle.reader import Bundle
from m3_runtime.cli import main
from m3_runtime.encode.batching import pack_batch
from m3_runtime.engines import KEPT_TOKENS

PLAN = Path(__file__).parents[1] / "golden" / "tiny_random_plan.json"
PAIRS = [
    ("What is BGE M3?", "BGE M3 is an embedding model supporting dense retrieval, lexical matching and more."),
    ("What is BGE M3?", "the"),
    ("搜索 模型", "日本語のテキストをトークン化する。"),
    ("Defination of BM25", "Ein Satz, der etwas länger ist. " * 6),
    ("x", "x x x x x x"),
    ("один два", " trailing blanks  "),
]


@pytest.fixture(scope="module")
def graph(portable_graph):
    return portable_graph(reranker=True)


@pytest.fixture(scope="module")
def fused(graph, tmp_path_factory) -> ort.InferenceSession:
    return session_of(passes.for_onnxruntime(graph), tmp_path_factory.mktemp("fused"))


def expected(*lengths: int) -> np.ndarray:
    return reference_scores(checkpoint_of(reranker=True), texts_of(*lengths), lambda rows: rows)


@pytest.mark.parametrize("lengths", [(4,), (78,), (9, 9, 9), (5, 78, 20, 6)])
def test_the_fused_graph_equals_pytorch(fused, lengths):
    (logits,) = fused.run(None, padded(texts_of(*lengths)))
    assert logits.shape == (len(lengths), 1)
    np.testing.assert_allclose(logits[:, 0], expected(*lengths), atol=5e-5, rtol=0)


def test_the_last_layer_is_computed_for_the_first_token_alone(fused):
    assert [value.name for value in fused.get_overridable_initializers()] == [KEPT_TOKENS]
    (logits,) = fused.run(None, {**padded(texts_of(5, 40, 20)), KEPT_TOKENS: np.array([1])})
    np.testing.assert_allclose(logits[:, 0], expected(5, 40, 20), atol=5e-5, rtol=0)


def test_short_pairs_packed_into_rows(graph):
    texts = texts_of(5, 12, 9, 30, 4)
    batch = pack_batch([texts[:3], texts[3:]], 1, Pooling.CLS)
    feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **batch.packing()}
    run = opened(passes.for_openvino(graph))
    for kept in ({}, {KEPT_TOKENS: np.array([batch.leading])}):
        (logits,) = run(**feeds, **kept)
        np.testing.assert_allclose(logits[:, 0], expected(5, 12, 9, 30, 4), atol=5e-5, rtol=0)


@pytest.fixture(scope="module")
def quantized() -> QuantizedModel:
    model, ids = M3Model(checkpoint_of(reranker=True), UNUSED), texts_of(*range(8, 40, 2))
    return QuantizedModel(model, lambda: gather_statistics(model, ids, lambda batches: batches))


@pytest.fixture(scope="module")
def simulation(quantized) -> Simulation:
    return Simulation(quantized, texts_of(*range(9, 60, 2), 4, 5), [False] * 26 + [True] * 2)


def test_simulated_losses_of_a_reranker(quantized, simulation):
    exact = simulation.losses_of_projection(Projection(0, Kind.QKV), FLOAT, 0)
    assert exact.additive().max() < 1e-9
    embedding = simulation.losses_of_embedding().additive()
    parts = [
        simulation.losses_of_projection(Projection(layer, kind), DYNAMIC, 0).additive()
        for layer in (0, 1)
        for kind in Kind
    ]
    assert all(part.mean() > 1e-9 for part in parts)
    with quantized.fake_quantized(PrecisionPlan.uniform(2, DYNAMIC, 0).schemes, 0):
        whole = simulation.losses_of_embedding().additive()
    assert 1 / 4 < whole.mean() / (sum(parts) + embedding).mean() < 4


# ---- the bundle


@pytest.fixture(scope="module")
def manifest(reranker_bundle: Path):
    return Bundle.open(reranker_bundle, verify="full").manifest


def test_the_manifest_says_what_it_is(manifest, reranker_bundle: Path, reranker_checkpoint: Path):
    assert manifest.is_reranker and manifest.heads == (Head.SCORE,)
    assert (manifest.pooling, manifest.normalize) == (Pooling.CLS, False)
    assert manifest.recipe["budget"] == ScoreBudget().to_text()
    assert manifest.recipe["pooling_from"] == "classifier"
    assert (reranker_bundle / "config.json").read_bytes() == (reranker_checkpoint / "config.json").read_bytes()
    assert {path.name for path in reranker_bundle.iterdir()} == {
        "manifest.json", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "plan.json", "onnx", "openvino",
    }  # fmt: skip
    assert not list(reranker_bundle.rglob("last_hidden_state*"))


def test_parity_is_of_scores_and_what_is_over_is_said(manifest):
    assert list(manifest.parity) == ["onnx-fp32", "onnx-int8", "openvino-int8"]
    for variant in manifest.variants:
        parity = manifest.parity[variant.name]
        assert (parity.dense, parity.sparse, parity.colbert) == (None, None, None)
        assert parity.score.spread > 0.1
        assert parity.batch_invariance_min > 0.99999
        assert parity.score.kendall_tau > 0.9
        over = excesses(parity, ScoreBudget(), variant.precision, normalize=False)
        assert manifest.over_budget.get(variant.name, ()) == tuple(map(str, over))
    assert "onnx-fp32" not in manifest.over_budget
    assert manifest.parity["onnx-fp32"].degenerate is None
    assert manifest.parity["openvino-int8"].degenerate.texts > 200


def test_differences_are_shown_in_parts_of_the_spread(manifest, reranker_bundle: Path, capsys):
    """In the budget's unit, so that a reader can compare the two."""
    score = manifest.parity["onnx-int8"].score
    p99, most = score.difference_p99 / score.spread, score.difference_max / score.spread
    text = export_text(Export(Bundle.open(reranker_bundle), {}, ()))
    (row,) = (line.split() for line in text.splitlines() if line.startswith("onnx-int8 "))
    assert row[3:5] == [f"{p99:.2g}", f"{most:.2g}"]
    assert re.search(r"onnx-int8: \d+ of \d+ degenerate pairs above 0\.15 of the spread \(difference ÷ spread: ", text)
    assert main(["info", str(reranker_bundle)]) == 0
    said = capsys.readouterr().out
    assert f"99th percentile {p99:.5f}, at most {most:.5f}, in parts of the spread" in said
    assert f"on {manifest.parity['onnx-int8'].texts} probe pairs (" in said


@pytest.fixture(scope="module")
def reference(reranker_checkpoint: Path) -> np.ndarray:
    """transformers' own tokenizer and model, each pair alone."""
    tokenizer = AutoTokenizer.from_pretrained(reranker_checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(reranker_checkpoint).eval()
    with torch.inference_mode():
        return np.array([model(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in PAIRS])


@pytest.mark.parametrize(("name", "most"), [("onnx-fp32", 1e-4), ("onnx-int8", 0.5), ("openvino-int8", 0.5)])
def test_scores_are_transformers(reranker_bundle: Path, reference: np.ndarray, name: str, most: float):
    with M3Reranker.open(reranker_bundle, variant=name, threads=1) as reranker:
        found = np.array(reranker.compute_score(PAIRS, max_length=512))
    np.testing.assert_allclose(found, reference, atol=most, rtol=0)


def test_the_plan_is_the_one_that_was_given(manifest, reranker_bundle: Path):
    found, given = (read_plans(path, manifest.geometry) for path in (reranker_bundle / "plan.json", PLAN))
    assert found == given


# ---- the score correction of INT8 variants


def test_a_graph_takes_a_correction_and_leaves_the_other_as_it_was(graph, fused, tmp_path: Path):
    feeds = padded(texts_of(9, 30, 5))
    (before,) = fused.run(None, feeds)
    (corrected,) = session_of(passes.for_onnxruntime(passes.with_score_correction(graph, 1.5, -0.25)), tmp_path).run(
        None, feeds
    )
    np.testing.assert_allclose(corrected, 1.5 * before - 0.25, atol=1e-5, rtol=0)
    (after,) = session_of(passes.for_onnxruntime(graph), tmp_path).run(None, feeds)
    np.testing.assert_array_equal(after, before)


def moved(fp32: Path, folder: Path, name: str) -> tuple[ScoreCorrection, float]:
    """What is left to correct in a variant's scores of the calibration pairs, and their largest difference."""
    natural = ChosenPairs.of(chosen_texts(None, None)).calibration
    pairs = [(pair.query, pair.passage) for i, pair in enumerate(natural) if i % 5]
    scores = []
    for path, variant in ((fp32, "onnx-fp32"), (folder, name)):
        with M3Reranker.open(path, variant=variant, threads=1) as reranker:
            found = reranker.compute_score(pairs, max_length=CALIBRATION_TOKENS, query_max_length=62)
        scores.append(np.array(found, np.float32))
    return ScoreCorrection.between(*scores), float(np.abs(scores[0] - scores[1]).max())


@pytest.mark.parametrize("name", ["onnx-int8", "openvino-int8"])
def test_int8_moves_no_score_of_all_calibration_pairs_alike(manifest, reranker_bundle: Path, name: str):
    assert f"{name} × " in manifest.recipe["score_corrections"]
    left, largest = moved(reranker_bundle, reranker_bundle, name)
    assert abs(left.scale - 1) < 2e-3 and abs(left.shift) < 2e-3
    assert largest > 1e-3  # each by itself has moved


def test_a_plan_that_was_searched_ships_with_its_correction(
    reranker_bundle: Path, reranker_checkpoint: Path, tmp_path: Path
):
    budget = "score_p99=0.3,score_max=0.9,top1=0.8,degenerate_share=0.2"
    done = export(reranker_checkpoint, *FEW, "--variants", "onnx-int8", "--budget", budget, tmp_path / "searched")
    assert done.code == 0, done.stderr
    recipe = Bundle.open(done.out, verify="full").manifest.recipe
    assert recipe["plan"] == "measured"
    correction = recipe["score_corrections"].removeprefix("onnx-int8 ")
    assert correction != "× 1 +0" and f"Score correction: {correction}\n" in done.stderr
    left, _ = moved(reranker_bundle, done.out, "onnx-int8")
    assert abs(left.scale - 1) < 2e-3 and abs(left.shift) < 2e-3
