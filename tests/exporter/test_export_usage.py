"""m3-export's command line: usage errors, help, and what needs no model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from export_command import BUDGET, PROBE, export, files, names

from patience import PATIENCE_S
from shared_bundles import TINY_PLAN


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--variants", "onnx-int4"], ("unknown variant 'onnx-int4'", "openvino-int8")),
        (["--variants", ""], ("no variant named",)),
        (["--heads", "sparse"], ("'dense' or 'dense,sparse,colbert'",)),
        (["--heads", "bm25"], ("unknown head 'bm25'",)),
        (["--budget", "ndcg=0.9"], ("no entry 'ndcg'", "dense_mean")),
        (["--budget", "dense_min=2"], ("dense_min", "between -1 and 1")),
        (["--recipe", "old.toml"], ("recipe files are no longer read", "flags (--variants, --heads, --budget")),
        (["--target", "gpu"], ("--target", "vnni")),
        (["--calibration-texts", "missing.txt"], ("calibration texts missing.txt", "No such file")),
        (["--pooling", "max"], ("--pooling", "last_token")),
        (["--bogus"], ("--bogus",)),
        (["--variants", "onnx-fp32", "--plan", "p.json"], ("--plan is for INT8 variants", "leave it out")),
        (["--variants", "onnx-fp32", "--budget", "strict"], ("--budget is for INT8 variants",)),
        (["--variants", "onnx-fp32", "--optimise", "latency"], ("--optimise is for INT8 variants",)),
        (["--checkpoint-only", "--heads", "dense"], ("--heads is for bundles, and --checkpoint-only writes none",)),
        (["--checkpoint-only", "--target", "vnni"], ("--target is for bundles",)),
        (["--checkpoint-only", "--revision", "main"], ("--revision is for bundles",)),
    ],
    ids=" ".join,
)
def test_usage_errors_are_exit_2_and_touch_nothing(tmp_path: Path, words: list[str], named: tuple[str, ...]):
    done = export("no-such-source", *words, tmp_path / "bundle")
    assert (done.code, done.stdout) == (2, "")
    assert all(word in done.stderr for word in named), done.stderr
    assert names(tmp_path) == set()


@pytest.mark.parametrize("words", [["tiny-random"], ["tiny-random", "a", "b"], ["verify-golden"]], ids=str)
def test_a_wrong_number_of_words_is_exit_2(words: list[str]):
    done = export(*words)
    assert done.code == 2
    assert "usage: m3-export" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--variants", "onnx-fp32", "--heads", "dense", "--calibration-texts", PROBE],
            "--calibration-texts is for INT8",
        ),
        (["--plan", TINY_PLAN, "--target", "vnni"], "--target is for a search of plans"),
        (["--plan", TINY_PLAN, "--optimise", "latency"], "--optimise is for a search of plans"),
        (
            ["--plan", "{onnx}", "--variants", "openvino-int8"],
            "onnx.json is of onnx-int8, not of --variants",
        ),
    ],
    ids=["calibration texts", "target", "optimise", "another variant"],
)
def test_options_that_would_change_nothing_are_refused(tiny_random_checkpoint: Path, tmp_path: Path, words, said):
    plan = json.loads(TINY_PLAN.read_text())
    (tmp_path / "onnx.json").write_text(json.dumps(plan | {"variants": {"onnx-int8": plan["variants"]["onnx-int8"]}}))
    words = [str(word).format(onnx=tmp_path / "onnx.json") for word in words]
    done = export(tiny_random_checkpoint, *words, "--quiet", tmp_path / "out")
    assert (done.code, done.stdout, done.out.exists()) == (2, "", False)
    assert said in done.stderr


def test_a_rerankers_fp32_needs_no_calibration_texts(reranker_checkpoint: Path, tmp_path: Path):
    given = ("--variants", "onnx-fp32", "--calibration-texts", PROBE)
    done = export(reranker_checkpoint, *given, "--quiet", tmp_path / "out")
    assert (done.code, done.out.exists()) == (2, False)
    assert "none of them is here" in done.stderr


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "m3_export"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: m3-export" in done.stderr


def test_help_names_sources_exit_codes_and_defaults():
    done = export("--help")
    assert (done.code, done.stderr) == (0, "")
    for word in ("mini-m3", "tiny-random", "BAAI/bge-m3", "checkpoint-N/", "verify-golden", "3 over budget"):
        assert word in done.stdout, word
    assert BUDGET in "".join(done.stdout.split())


# Just the checkpoint


def test_checkpoint_only_writes_the_checkpoint(tiny_random_checkpoint: Path, tmp_path: Path):
    done = export("tiny-random", "--checkpoint-only", tmp_path / "checkpoint")
    assert done.code == 0
    assert done.stdout.startswith(f"{done.out}: checkpoint tiny-random (")
    assert files(done.out) == files(tiny_random_checkpoint)
    assert names(tmp_path) == {"checkpoint"}


def test_checkpoint_only_is_of_named_models_and_replaces_nothing(tiny_random_checkpoint: Path, tmp_path: Path):
    done = export("BAAI/bge-m3", "--checkpoint-only", tmp_path / "new")
    assert (done.code, done.stdout) == (2, "")
    assert "--checkpoint-only writes a named model: mini-m3, tiny-random" in done.stderr
    done = export("tiny-random", "--checkpoint-only", "--force", tmp_path)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == f"m3-export: {str(tmp_path)!r} exists; choose another folder for the checkpoint\n"
    assert names(tmp_path) == set()


@pytest.mark.parametrize("words", [["out/source"], ["no-such-source", "--probe-texts", "out/probe.txt"]], ids=str)
def test_a_bundle_takes_the_place_of_no_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "source").mkdir(parents=True)
    (tmp_path / "out" / "probe.txt").write_text("a text\n")
    (tmp_path / "out" / "manifest.json").write_text('{"schema_version": 3, "space_id": "m3-0"}')
    done = export(words[0], *words[1:], "out", "--force")
    assert done.code == 2
    assert "which the bundle would replace; choose another folder" in done.stderr
    assert (tmp_path / "out" / "probe.txt").read_text() == "a text\n"
