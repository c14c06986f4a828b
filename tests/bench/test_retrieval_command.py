"""`m3-bench retrieval` on bundles, as a user runs it; and what it does where heads, variants or memory are missing."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from m3_bench import cli, documents
from m3_bench.documents import Retrieval
from m3_bench.retrieval.bundles import choose_bundles
from m3_bench.run import contenders
from m3_runtime import Bundle
from m3_runtime.cpu import CpuInfo
from m3_runtime.engines import select
from m3_runtime.errors import InputError, VariantError

DATA = Path(__file__).parents[2] / "benchmarks" / "data" / "multilingual"
QUICK = ("--limit-queries", "6", "--limit-documents", "12", "--threads", "1")
OLD = CpuInfo("Old Core", "x86_64", frozenset({"avx2", "fma"}))


def retrieval(*words) -> int:
    return cli.main(["retrieval", *map(str, words)])


def copied(bundle: Path, to: Path, **changes) -> Path:
    """A bundle of hard links whose manifest says something else."""
    shutil.copytree(bundle, to, copy_function=os.link)
    manifest = json.loads((to / "manifest.json").read_text())
    (to / "manifest.json").unlink()
    (to / "manifest.json").write_text(json.dumps(manifest | changes))
    return to


def test_every_variant_and_method_is_measured(tiny_bundle, tmp_path, capsys):
    out = tmp_path / "retrieval.json"
    assert retrieval(DATA, tiny_bundle, *QUICK, "--variants", "onnx-fp32,onnx-int8", "-o", out) == 0
    found = documents.read_as(Retrieval, out)
    heads = ["dense", "sparse", "dense+sparse 1/0.3", "dense+sparse 0.2/0.8", "colbert"]
    heads += ["all 1/0.3/1", "all 0.15/0.5/0.35", "all 0.4/0.2/0.4"]
    assert [(run.bundle, run.variant, run.method) for run in found.methods] == [
        ("", "", "TF-IDF words"),
        ("", "", "BM25 words"),
        ("tiny-random", "", "word vectors"),
        *(("tiny-random", "onnx-fp32", method) for method in heads),
        *(("tiny-random", "onnx-int8", method) for method in heads),
    ]
    for run in found.methods:
        assert all(len(values) == 6 for values in run.metrics.values())
        assert run.query_ms > 0
    sizes = {run.method: run.index_bytes for run in found.methods if run.variant != "onnx-int8"}
    geometry = Bundle.open(tiny_bundle).manifest.geometry
    assert sizes["dense"] == sizes["word vectors"] == 12 * geometry.hidden_size * 4
    assert sizes["dense+sparse 1/0.3"] == sizes["dense"] + sizes["sparse"]
    assert (sizes["colbert"] - sizes["dense"]) % (2 * geometry.colbert_dim) == 0
    assert sizes["all 1/0.3/1"] == sizes["colbert"] + sizes["sparse"]
    assert found.query_ids == ("en-1", "en-2", "en-3", "en-4", "en-5", "en-6")
    assert (found.dataset.queries, found.dataset.documents) == (6, 12)
    assert found.models["tiny-random"].weights_sha256
    captured = capsys.readouterr()
    assert captured.out.count("\n| onnx-") == 16
    assert "| ms a query | index, MB |" in captured.out
    assert "Brackets hold 95 %" in captured.out and "Losses are against FP32" in captured.out
    assert "only the first 6 of 72 queries" in captured.out
    assert "tiny-random, onnx-int8: done" in captured.err


def test_own_weights_replace_the_published_ones(tiny_bundle, tmp_path, capsys):
    out = tmp_path / "r.json"
    words = ("--variants", "onnx-fp32", "--weights", "1,0", "--weights", "1,0,0", "--weights", "1,0", "-o", out)
    assert retrieval(DATA, tiny_bundle, *QUICK, *words) == 0
    by_method = {run.method: run.metrics for run in documents.read_as(Retrieval, out).methods}
    assert list(by_method)[3:] == ["dense", "sparse", "dense+sparse 1/0", "colbert", "all 1/0/0"]
    assert by_method["dense+sparse 1/0"] == by_method["dense"]
    assert by_method["all 1/0/0"] == by_method["dense"]
    assert not {"Brackets", "Losses"} & set(capsys.readouterr().out.split())  # nothing to compare with


def test_two_bundles_are_compared_and_a_missing_head_is_named(tiny_bundle, tmp_path, capsys):
    dense_only = copied(tiny_bundle, tmp_path / "after", heads=["dense"])
    assert retrieval(DATA, tiny_bundle, dense_only, *QUICK, "--variants", "onnx-fp32", "-o", tmp_path / "r.json") == 0
    found = documents.read_as(Retrieval, tmp_path / "r.json")
    assert [run.method for run in found.methods if run.bundle == "after"] == ["word vectors", "dense"]
    assert "after has no sparse and no colbert head: methods that need it were left out" in found.notes
    table = capsys.readouterr().out
    assert "| gain of nDCG@10 over tiny-random |" in table
    assert "Brackets hold 95 %" in table and "Losses are against FP32" not in table
    assert next(line for line in table.splitlines() if "| after " in line).endswith("| 0.000 [0.000, 0.000] |")


def test_mini_m3_finds_what_is_meant(mini_bundle, tmp_path):
    """Across languages too, where BM25 has nothing to go by."""
    assert retrieval(DATA, mini_bundle, "--variants", "onnx-int8", "--threads", 1, "-o", tmp_path / "r.json") == 0
    found = documents.read_as(Retrieval, tmp_path / "r.json")
    ndcg = {run.method: run.metrics["nDCG@10"] for run in found.methods}
    assert np.mean(ndcg["dense"]) > 0.85
    assert np.mean(ndcg["colbert"]) > 0.9
    assert np.mean(ndcg["all 1/0.3/1"]) > np.mean(ndcg["BM25 words"])
    across = [n for n, query in enumerate(found.query_ids) if query.startswith("x-")]
    assert np.mean([ndcg["dense"][n] for n in across]) > np.mean([ndcg["BM25 words"][n] for n in across]) + 0.3


def test_texts_that_are_cut_are_named(tiny_bundle, tmp_path):
    words = ("--variants", "onnx-fp32", "--max-length", 8, "-o", tmp_path / "r.json")
    assert retrieval(DATA, tiny_bundle, *QUICK, *words) == 0
    notes = documents.read_as(Retrieval, tmp_path / "r.json").notes
    assert "tiny-random: 12 of 12 documents were longer and were cut" in notes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--variants", "int4"), "--variants: no bundle has int4; there are onnx-fp32, onnx-int8, openvino-int8"),
        (("--weights", "1"), "expected dense,sparse or dense,sparse,colbert"),
        (("--max-length", "100000"), "max_length is 100000, but the model takes at most"),
        (("-o", "no/such/folder/r.json"), "does not exist; create it first"),
        (("--layout", "miracl"), "--layout is gone: a dataset's layout is detected by its files"),
        (("--queries-from=b.json",), "--queries-from is gone: write the other language's questions"),
        (("--colbert-memory", "100"), "--colbert-memory is gone"),
        (("--reranked", "5"), "--reranked is for --reranker BUNDLE, which is not given"),
        (("--split", "dev"), "expected corpus.jsonl, queries.jsonl and qrels/dev.tsv"),
    ],
)
def test_wrong_words_are_explained(tiny_bundle, capsys, words, message):
    assert retrieval(DATA, tiny_bundle, *QUICK, *words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("names", ["onnx-fp32,,onnx-int8", "onnx-fp32,onnx-fp32", ",", ""])
def test_names_between_commas_come_once(tiny_bundle, capsys, names):
    with pytest.raises(SystemExit, match="2"):
        retrieval(DATA, tiny_bundle, *QUICK, "--variants", names)
    assert f"argument --variants: {names!r} names " in capsys.readouterr().err


def test_a_result_is_not_begun_where_the_dataset_is_bad(tiny_bundle, tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text("")
    assert retrieval(tmp_path / "a.jsonl", tiny_bundle, "-o", tmp_path / "r.json") == 2
    assert "a.jsonl' is empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_result_that_is_there_is_kept_unless_forced(tiny_bundle, tmp_path, capsys):
    (tmp_path / "r.json").write_text("mine")
    words = (DATA, tiny_bundle, *QUICK, "--variants", "onnx-fp32", "--quiet", "-o", tmp_path / "r.json")
    assert retrieval(*words) == 2
    assert "exists; choose another file, or pass --force" in capsys.readouterr().err
    assert (tmp_path / "r.json").read_text() == "mine"
    assert retrieval(*words, "--force") == 0
    assert capsys.readouterr().err == ""
    assert documents.read_as(Retrieval, tmp_path / "r.json").query_ids[0] == "en-1"


def test_two_folders_of_one_name_are_refused(tiny_bundle, tmp_path):
    twin = copied(tiny_bundle, tmp_path / "elsewhere" / tiny_bundle.name)
    with pytest.raises(InputError, match="are both called 'tiny-random'"):
        choose_bundles([tiny_bundle, twin], None)
    with pytest.raises(InputError, match="expected a reranker's bundle, this is an encoder's"):
        choose_bundles([tiny_bundle], None, tiny_bundle)
    (tmp_path / "before").symlink_to(twin)
    choice = choose_bundles([tiny_bundle, tmp_path / "before"], ["onnx-fp32"])
    assert list(choice.models) == ["tiny-random", "before"]


def test_variants_that_cannot_run_are_left_out_and_named(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(select, "cpu_info", lambda: OLD)
    monkeypatch.setattr(contenders, "cpu_info", lambda: OLD)
    listed = json.loads((tiny_bundle / "manifest.json").read_text())["variants"]
    needy = [row | {"needs": ["int8_dot"] if row["name"] == "onnx-int8" else []} for row in listed]
    bundle = copied(tiny_bundle, tmp_path / "needy", variants=needy)
    choice = choose_bundles([bundle], None)
    assert [variant.name for variant in choice.chosen[0].variants] == ["onnx-fp32", "openvino-int8"]
    assert choice.notes[0].startswith("needy: onnx-int8 was left out: it needs int8_dot (VNNI or AMX")
    assert "this processor (Old Core) does not have" in choice.notes[0]
    with pytest.raises(VariantError, match="no variant of needy can be measured here: needy: onnx-int8 was left out"):
        choose_bundles([bundle], ["onnx-int8"])


def test_an_engine_that_is_not_installed_is_named(tiny_bundle, monkeypatch):
    monkeypatch.setattr(contenders, "is_installed", lambda engine: engine.value != "openvino")
    notes = choose_bundles([tiny_bundle], None).notes
    assert notes == ("tiny-random: openvino-int8 was left out: openvino is not installed",)


def test_the_help_shows_layouts_weights_and_examples(capsys):
    with pytest.raises(SystemExit) as done:
        retrieval("--help")
    assert done.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "squad",
        "beir",
        "miracl",
        "mldr",
        "finetune",
        "all 0.15/0.5/0.35",
        "m3-bench retrieval xquad.en.json",
    ):
        assert word in text


def test_documents_by_another_variant_than_queries(tiny_bundle, tmp_path, capsys):
    words = ("--variants", "onnx-fp32,onnx-int8", "--documents-by", "onnx-fp32", "-o", tmp_path / "r.json")
    assert retrieval(DATA, tiny_bundle, *QUICK, *words) == 0
    mixed = documents.read_as(Retrieval, tmp_path / "r.json")
    assert mixed.settings["documents encoded by"] == "onnx-fp32"
    assert retrieval(DATA, tiny_bundle, *QUICK, "--variants", "onnx-fp32", "-o", tmp_path / "fp32.json") == 0
    alone = documents.read_as(Retrieval, tmp_path / "fp32.json")
    found = [(run.method, run.metrics) for run in mixed.methods if run.variant == "onnx-fp32"]
    assert found == [(run.method, run.metrics) for run in alone.methods if run.variant]
    assert retrieval(DATA, tiny_bundle, *QUICK, "--variants", "onnx-fp32", "--documents-by", "none") == 2
    assert "--documents-by none: tiny-random has onnx-fp32, onnx-int8" in capsys.readouterr().err
