"""`m3-bench run` on a reranker's bundle: pairs of exact lengths, beside an encoder of the same size."""

import re
import shutil
from pathlib import Path

import pytest

from commands import Done, run_main
from m3_bench import documents
from m3_bench.cli import main
from m3_bench.documents import Run
from m3_bench.run.budget import DEGENERATE, UnseenPairs, rerankers_over_budget
from m3_bench.run.contenders import variants_of, variants_of_plans
from m3_bench.scenarios import read_plan
from m3_bench.texts import TextMaker
from m3_bench.workers.pairs import pairs_of
from m3_export.calibration.pairs import ChosenPairs
from m3_export.calibration.texts import chosen_texts
from m3_runtime import Bundle, M3Reranker

PLAN = """
[[scenario]]
name = "pairs"
texts = 2
tokens = 24
heads = ["score"]
group = "both"
contenders = ["onnx-fp32"]

[[scenario]]
name = "texts"
texts = 2
tokens = 24
heads = ["dense"]
group = "both"

[[target]]
name = "as-encoder"
measure = "throughput"
scenarios = ["pairs"]
contender = "onnx-fp32"
against = ["encoder"]
against_scenario = "texts"
limits = { avx2 = 0.95 }
"""


def bench(*words) -> Done:
    return run_main(main, *words)


def test_pairs_and_texts_take_turns(reranker_bundle, tiny_bundle, tmp_path):
    (tmp_path / "plan.toml").write_text(PLAN)
    words = ("--scenarios", tmp_path / "plan.toml", "--variants", "onnx-fp32", "--encoder", tiny_bundle, "--rounds", 1)
    done = bench("run", reranker_bundle, *words, "--threads", 1, "-o", tmp_path / "run.json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "| as-encoder" in done.stdout
    run = documents.read_as(Run, tmp_path / "run.json")
    ours, encoder = run.contenders
    assert (ours.name, ours.heads, ours.outputs) == ("onnx-fp32", ("score",), None)
    assert [one.scenario for one in ours.scenarios] == ["pairs"]
    assert encoder.name.startswith(f"{tiny_bundle.name} ")
    assert [one.scenario for one in encoder.scenarios] == ["texts"]
    assert not any(one.error for each in run.contenders for one in each.scenarios)


def test_what_everybody_is_asked_for_is_for_those_who_have_it():
    plan = read_plan(["reranker", "standard", "regret"])
    alone, beside = plan.for_heads(["score"]), plan.for_heads(["score"], ["dense"])
    assert alone.names == {"pair", "pairs", "short-pair", "one-pair", "sixteen-pairs"}
    assert beside.names - alone.names > {"texts", "query", "passage", "batch"}
    assert [one.scenarios[0] for one in beside.targets if one.name == "regret"] == ["short-pair"]
    assert [one.name for one in alone.targets] == ["flagreranker", "as-encoder", "regret"]
    assert plan.for_heads(["dense"]).names.isdisjoint({"texts", *alone.names})


def test_what_comes_with_the_package_asks_for_pairs():
    plan = read_plan(["reranker"])
    assert {one.heads for one in plan.scenarios} == {("score",), ("dense",)}
    assert [one.name for one in plan.targets] == ["flagreranker", "as-encoder"]


def test_texts_as_pairs_keep_their_tokens(reranker_bundle, tokenizer):
    texts = [TextMaker(tokenizer).text(tokens) for tokens in (12, 40, 128)]
    with M3Reranker.open(reranker_bundle, variant="onnx-fp32", threads=1) as reranker:
        found = reranker.score_pairs(pairs_of(texts), max_length=reranker.max_tokens)
    assert found.token_counts.tolist() == [12, 40, 128]


def test_regret_is_over_pairs_that_no_plan_was_made_on(reranker_bundle, tmp_path):
    other = tmp_path / "other-plan"
    shutil.copytree(reranker_bundle, other)
    words = ("--scenarios", "regret", "--variants", "onnx-int8", "--plans", other, "--threads", 1, "--rounds", 1)
    done = bench("run", reranker_bundle, *words, "-o", tmp_path / "regret.json")
    assert done.returncode == 0, done.stderr
    assert "batch, passage, query left out: " in done.stderr
    assert "| regret-onnx-int8: time ÷ that of the fastest plan that holds the budget | ≤ 1.03 | 1." in done.stdout
    run = documents.read_as(Run, tmp_path / "regret.json")
    assert [one.name for one in run.contenders] == ["onnx-fp32", "onnx-int8", "other-plan onnx-int8"]
    assert [one.name for one in run.scenarios] == ["short-pair", "one-pair", "sixteen-pairs"]


def test_a_reranker_is_held_to_its_budget_on_other_pairs_too(reranker_bundle, tmp_path):
    bundle = tmp_path / "strict"
    shutil.copytree(reranker_bundle, bundle)
    manifest = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(re.sub(r"score_p99=[0-9.]+", "score_p99=0.0", manifest))
    plans = {one.name: one for one, _ in variants_of(Bundle.open(bundle), ["onnx-fp32", "onnx-int8"], 1)}
    over = rerankers_over_budget(plans, UnseenPairs.of(None), 1)
    assert over.keys() == {"onnx-int8"}
    assert any(one.startswith("other texts: score difference p99 ÷ spread") for one in over["onnx-int8"])


def test_a_plan_that_does_not_run_leaves_the_others_in_the_table(reranker_bundle, tmp_path):
    folder = Path(shutil.copytree(reranker_bundle, tmp_path / "broken"))
    whole = Bundle.open(reranker_bundle)
    (broken,) = variants_of_plans(whole, {"onnx-int8"}, [folder], 1)
    (folder / "onnx/model_int8.onnx").write_bytes(b"no graph")  # after it was opened
    plans = {one.name: one for one, _ in variants_of(whole, ["onnx-fp32", "onnx-int8"], 1)}
    over = rerankers_over_budget({**plans, broken.name: broken}, UnseenPairs.of(None), 1)
    assert over.keys() == {"onnx-int8", "broken onnx-int8"}
    (reason,) = over["broken onnx-int8"]
    assert reason.startswith("it gave no scores: ")
    assert not any("no scores" in one for one in over["onnx-int8"])


def test_unseen_pairs_are_of_no_plan_and_as_many_as_an_export_probes():
    found, known = UnseenPairs.of(None), ChosenPairs.of(chosen_texts(None, None))
    assert not {*found.texts} & {one.text for one in (*known.calibration, *known.probe)}
    assert (len(found.natural), len(found.degenerate)) == (384, DEGENERATE)


@pytest.mark.parametrize(
    ("bundle", "words", "message"),
    [
        ("reranker_bundle", ("--scenarios", "quick"), "--scenarios quick: nothing there can be measured, as"),
        (
            "tiny_bundle",
            ("--scenarios", "reranker", "--targets", "flagreranker"),
            "--scenarios reranker: nothing there can be measured",
        ),
        ("tiny_bundle", ("--encoder", "BUNDLE"), "expected an encoder's bundle of the size of BUNDLE, a reranker's"),
        ("reranker_bundle", ("--scenarios", "reranker", "--encoder", "BUNDLE"), "expected an encoder's bundle"),
        ("reranker_bundle", ("--scenarios", "regret", "--plans", "tiny_bundle"), "has different weights than"),
        ("reranker_bundle", ("--scenarios", "reranker,standard"), "--scenarios standard: nothing there"),
        ("reranker_bundle", ("--scenarios", "reranker", "--texts", __file__), "--texts is for vectors"),
        ("reranker_bundle", ("--scenarios", "regret", "--targets", "lite"), "there is no target 'lite'"),
    ],
)
def test_what_does_not_fit_is_refused(request, tmp_path, bundle, words, message):
    folder = request.getfixturevalue(bundle)
    given = [folder if word == "BUNDLE" else word for word in words]
    given = [request.getfixturevalue(word) if word == "tiny_bundle" else word for word in given]
    done = bench("run", folder, *given, "-o", tmp_path / "run.json")
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_peer_for_encoders_is_refused_beside_a_reranker(reranker_bundle, reranker_checkpoint, tmp_path):
    words = ("--scenarios", "reranker", "--peers", "lite-int8", "-o", tmp_path / "p.json")
    done = bench("peers", reranker_checkpoint, reranker_bundle, *words)
    assert done.returncode == 2
    assert "lite-int8 does not run a reranker; peers that do are flagreranker-fp32" in done.stderr
