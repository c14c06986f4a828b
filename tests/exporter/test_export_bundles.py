"""Whole exports by m3-export: what stdout, the report, the manifest and the bundle say, and that the bytes repeat."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export_command import BUDGET, FEW, Done, export, files, names
from safetensors.torch import load_file, save_file

from m3_export.pipeline import Export
from m3_export.report import export_json
from m3_runtime import Bundle, M3Encoder
from m3_runtime.bundle.manifest import Head
from m3_runtime.bundle.prompts import Prompts, read_prompts
from m3_runtime.errors import HeadError


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where exports of this file go; each takes many seconds."""
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="module")
def again(tiny_bundle: Path, exports: Path) -> Done:
    """tiny-random once more by the same plan, over an older bundle; `tiny_bundle` was made by another process."""
    out = Path(shutil.copytree(tiny_bundle, exports / "again" / "bundle"))
    (out / "left-over.txt").write_text("of the older bundle")
    return export("tiny-random", "--json", "--quiet", "--force", "--plan", tiny_bundle / "plan.json", out)


def write_tuned(checkpoint: Path, folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """tiny-random's first layer with changed weights, without sparse and ColBERT heads, and with a prompt."""
    shutil.copytree(checkpoint, folder)
    state = load_file(folder / "model.safetensors")
    kept = {name: change(tensor) for name, tensor in state.items() if ".layer.1." not in name}
    save_file(kept, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "find: "}}')
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        (folder / name).unlink()
    return folder


@pytest.fixture(scope="module")
def searched(tiny_random_checkpoint: Path, exports: Path) -> Done:
    """A dense-only bundle of fp16 weights by searched plans: precisions timed on both engines, candidates measured."""
    tuned = write_tuned(tiny_random_checkpoint, exports / "tuned", torch.Tensor.half)
    words = ("--heads", "dense", "--variants", "openvino-int8,onnx-int8", "--budget", "fast")
    return export(tuned, *FEW, *words, exports / "searched")


@pytest.fixture(scope="module")
def over_budget(searched: Done, tiny_random_checkpoint: Path, exports: Path) -> Done:
    """One of its variants by its plan, from the same weights in fp32: over a budget that nothing meets, and allowed."""
    upcast = write_tuned(tiny_random_checkpoint, exports / "upcast", lambda tensor: tensor.half().float())
    words = ("--heads", "dense", "--variants", "onnx-int8", "--plan", searched.out / "plan.json")
    return export(upcast, *FEW, *words, "--budget", "dense_min=1", "--allow-over-budget", exports / "over-budget")


def test_json_is_the_whole_of_stdout_and_quiet_silences_stderr(again: Done):
    assert again.code == 0, again.stderr
    assert again.stderr == ""
    report = json.loads(again.stdout)
    assert report["bundle"] == str(again.out)
    assert report["source"] == {"name": "tiny-random", "revision": None}
    assert report["heads"] == ["dense", "sparse", "colbert"]
    assert report["budget"] == BUDGET
    assert report["warnings"] == []
    assert list(report["variants"]) == ["onnx-fp32", "onnx-int8", "openvino-int8"]
    for variant in report["variants"].values():
        assert variant["over_budget"] == []
        assert variant["size_bytes"] > 100_000
        assert variant["parity"]["dense"]["cosine_min"] >= 0.998
    assert report["peak_memory_bytes"] > 100 << 20


def test_json_has_the_warnings(tiny_bundle: Path):
    assert export_json(Export(Bundle.open(tiny_bundle), {}, ("one", "two")))["warnings"] == ["one", "two"]


def test_the_report_says_what_the_manifest_says(again: Done):
    report, manifest = json.loads(again.stdout), Bundle.open(again.out, verify="full").manifest
    assert report["space_id"] == manifest.space_id
    assert report["tools"] == dict(manifest.tools)
    for name, parity in manifest.parity.items():
        assert report["variants"][name]["parity"]["dense"]["cosine_mean"] == parity.dense.cosine_mean
        assert report["variants"][name]["parity"]["sparse"]["jaccard_min"] == parity.sparse.jaccard_min


def test_prompts_of_the_checkpoint_are_the_bundles(searched: Done, tiny_bundle: Path):
    assert searched.code == 0, searched.stderr
    bundle = Bundle.open(searched.out, verify="full")
    assert read_prompts(bundle) == Prompts({"query": "find: "})
    assert "config_sentence_transformers.json" in {entry.path for entry in bundle.manifest.source.files}
    assert read_prompts(Bundle.open(tiny_bundle)) == Prompts()


def test_two_exports_give_the_same_bytes(again: Done, tiny_bundle: Path):
    assert files(again.out) == files(tiny_bundle)


def test_force_replaces_the_whole_older_bundle(again: Done):
    assert not (again.out / "left-over.txt").exists()
    assert names(again.out.parent) == {"bundle"}


def test_no_machine_path_and_no_time_in_the_bundle(again: Done):
    package = Path(__file__).resolve().parents[2]
    places = {str(p) for p in (again.out.parent, package, sys.prefix, Path.home(), Path.cwd()) if len(str(p)) > 1}
    traces = [*places, "site-packages", "/tmp/", ".partial", "pytest"]
    for path, content in files(again.out).items():
        assert [t for t in traces if t.encode() in content] == [], path
        if path.endswith((".json", ".xml")):
            text = content.decode()
            assert not re.search(r"20\d\d[-/]\d\d[-/]\d\d|\b\d\d:\d\d:\d\d\b|\b1[6-9]\d{8}(\.\d+)?\b", text), path


def test_the_bundle_holds_what_its_manifest_lists_and_no_more(again: Done):
    manifest = Bundle.open(again.out, verify="full").manifest
    listed = {entry.path for entry in manifest.files}
    assert set(files(again.out)) == listed | {"manifest.json"}
    assert {"tokenizer.json", "config.json"} <= listed
    assert all(set(variant.files) <= listed for variant in manifest.variants)


# One head, a search, one variant


def test_a_dense_only_bundle_has_one_head_and_says_so(searched: Done):
    assert searched.code == 0, searched.stderr
    manifest = Bundle.open(searched.out).manifest
    assert manifest.heads == (Head.DENSE,)
    assert manifest.geometry.colbert_dim is None
    assert manifest.parity["onnx-int8"].sparse is manifest.parity["onnx-int8"].colbert is None
    with M3Encoder.open(searched.out, threads=1) as encoder:
        assert encoder.encode(["What is BGE M3?"])["dense_vecs"].shape == (1, 64)
        for head in ("return_sparse", "return_colbert_vecs"):
            with pytest.raises(HeadError, match="dense"):
                encoder.encode(["What is BGE M3?"], **{head: True})


def test_a_search_keeps_the_budget_and_its_plans(searched: Done):
    manifest = Bundle.open(searched.out, verify="full").manifest
    assert manifest.recipe["plan"] == "measured"
    assert not any(manifest.over_budget.values())
    assert set(json.loads((searched.out / "plan.json").read_text())["variants"]) == {"onnx-int8", "openvino-int8"}
    for variant in manifest.variants:
        assert {line.precision for line in variant.plan} & {"static", "dynamic", "float"}, variant.name


def test_progress_goes_to_stderr_and_the_table_to_stdout(searched: Done):
    assert re.search(r"^\[ +\d+\.\d s\] Tracing the graph …$", searched.stderr, re.MULTILINE)
    for step in (
        "Reading checkpoint tiny-random",
        "PyTorch FP32 reference",
        "Timing onnx-int8's precisions",
        "Timing openvino-int8's precisions",
        "Writing onnx-int8",
        "parity of onnx-int8",
    ):
        assert step in searched.stderr
    assert searched.stdout.strip().startswith(f"Bundle {searched.out}: tiny-random, pooling cls, m3-")
    assert "[" not in searched.stdout


def test_a_subset_of_variants_writes_only_that(over_budget: Done):
    assert over_budget.code == 0, over_budget.stderr
    manifest = Bundle.open(over_budget.out).manifest
    assert [variant.name for variant in manifest.variants] == list(manifest.parity) == ["onnx-int8"]
    assert {path for path in files(over_budget.out) if "/" in path} == {
        "onnx/model_int8.onnx", "onnx/model_int8.onnx_data", "1_Pooling/config.json",
        "onnx/last_hidden_state_int8.onnx",
    }  # fmt: skip


def test_what_is_over_budget_and_allowed_is_reported(over_budget: Done):
    assert "OVER BUDGET (allowed): dense cosine min: measured 0.99" in over_budget.stdout
    assert "budget 1" in over_budget.stdout
    assert "dense_min=1.0" in Bundle.open(over_budget.out).manifest.recipe["budget"]


def test_half_precision_and_its_upcast_copy_are_one_space_and_one_graph(
    searched: Done, over_budget: Done, tiny_bundle: Path
):
    half, upcast = (Bundle.open(done.out).manifest for done in (searched, over_budget))
    assert upcast.recipe["plan"] == "given"
    assert upcast.space_id == half.space_id
    assert upcast.source.weights_sha256 == half.source.weights_sha256
    assert upcast.source.files != half.source.files
    assert upcast.space_id != Bundle.open(tiny_bundle).manifest.space_id
    graphs = [
        {name: content for name, content in files(done.out).items() if "int8.onnx" in name}
        for done in (searched, over_budget)
    ]
    assert len(graphs[0]) == 3
    assert graphs[0] == graphs[1]
