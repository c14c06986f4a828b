"""The command m3-export as a user meets it: exit codes, what goes to which stream, and what is left on the disk."""

import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from m3_export.cli import main
from m3_export.options import ExportOptions, VariantName
from m3_export.pipeline import export
from m3_export.verify import golden
from m3_runtime import Bundle, M3Encoder
from m3_runtime.bundle.manifest import Head
from m3_runtime.errors import HeadError, InputError
from m3_runtime.io.progress import Progress
from patience import PATIENCE_S

M3_EXPORT = [sys.executable, "-m", "m3_export"]
BUDGET = "dense_mean=0.9993,dense_min=0.998,colbert_p5=0.996,sparse_jaccard=0.98,degenerate_share=0.005"


@dataclass(frozen=True)
class Done:
    """A finished run of the command."""

    code: int
    stdout: str
    stderr: str
    out: Path


def command(*words: str | Path) -> Done:
    """Run m3-export in this process; the last word is OUT."""
    stdout, stderr = io.StringIO(), io.StringIO()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are tiny: threads that wait for each other take longer
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            code = main([str(word) for word in words])
    except SystemExit as stop:  # argparse's own way out
        code = int(stop.code or 0)
    finally:
        torch.set_num_threads(threads)
    return Done(code, stdout.getvalue(), stderr.getvalue(), Path(words[-1]))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def message_of(done: Done, code: int) -> str:
    """The one line of a failed run."""
    assert (done.code, done.stdout) == (code, ""), done
    line = done.stderr.splitlines()[-1]
    assert line.startswith("m3-export: ") and "Traceback" not in done.stderr
    return line.removeprefix("m3-export: ")


@pytest.fixture(scope="module")
def again(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """tiny-random once more by the same plan, in a process of its own, over an older bundle."""
    out = tmp_path_factory.mktemp("again") / "bundle"
    shutil.copytree(tiny_bundle, out)
    (out / "left-over.txt").write_text("of the older bundle")
    # its plan too: a plan follows measured times, and two measurements may differ
    words = ["tiny-random", str(out), "--json", "--quiet", "--force", "--plan", str(tiny_bundle / "plan.json")]
    done = subprocess.run([*M3_EXPORT, *words], capture_output=True, text=True, check=False, timeout=300)
    return Done(done.returncode, done.stdout, done.stderr, out)


@pytest.fixture(scope="module")
def half_precision(tiny_random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-random in fp16."""
    folder = tmp_path_factory.mktemp("half") / "tuned"
    shutil.copytree(tiny_random_checkpoint, folder)
    state = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def dense_only(half_precision: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A dense-only bundle of one variant, over a budget that nothing meets, and allowed to be."""
    folder = tmp_path_factory.mktemp("dense")
    shutil.copytree(half_precision, folder / "tuned")
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        (folder / "tuned" / name).unlink()
    flags = ("--heads", "dense", "--variants", "onnx-int8", "--budget", "dense_min=1", "--allow-over-budget")
    return command(folder / "tuned", *flags, folder / "bundle")


@pytest.fixture(scope="module")
def over_budget(tiny_random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    out = tmp_path_factory.mktemp("over") / "bundle"
    strict = ("--variants", "onnx-int8", "--budget", "dense_min=1,colbert_p5=1")
    return command(tiny_random_checkpoint, *strict, "--json", out)


# A whole export


def test_json_is_the_whole_of_stdout_and_quiet_silences_stderr(again: Done):
    assert again.code == 0, again.stderr
    assert again.stderr == ""
    report = json.loads(again.stdout)
    assert report["bundle"] == str(again.out)
    assert report["source"] == {"name": "tiny-random", "revision": None}
    assert report["heads"] == ["dense", "sparse", "colbert"]
    assert report["budget"] == BUDGET
    assert list(report["variants"]) == ["onnx-fp32", "onnx-int8", "openvino-int8"]
    for variant in report["variants"].values():
        assert variant["over_budget"] == []
        assert variant["size_bytes"] > 100_000
        assert variant["parity"]["dense"]["cosine_min"] >= 0.998
    assert report["peak_memory_bytes"] > 100 << 20


def test_the_report_says_what_the_manifest_says(again: Done):
    report, manifest = json.loads(again.stdout), Bundle.open(again.out, verify="full").manifest
    assert report["space_id"] == manifest.space_id
    assert report["tools"] == dict(manifest.tools)
    for name, parity in manifest.parity.items():
        assert report["variants"][name]["parity"]["dense"]["cosine_mean"] == parity.dense.cosine_mean
        assert report["variants"][name]["parity"]["sparse"]["jaccard_min"] == parity.sparse.jaccard_min


def test_two_exports_give_the_same_bytes(again: Done, tiny_bundle: Path):
    first, second = files(tiny_bundle), files(again.out)
    assert first.keys() == second.keys()
    assert [path for path in first if path != "manifest.json" and first[path] != second[path]] == []
    manifests = [Bundle.open(folder).manifest for folder in (tiny_bundle, again.out)]
    assert manifests[0].variants == manifests[1].variants
    assert manifests[0].parity == manifests[1].parity
    assert [manifest.recipe["plan"] for manifest in manifests] == ["measured", "given"]


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


# One head, one variant


def test_a_dense_only_bundle_has_one_head_and_says_so(dense_only: Done):
    assert dense_only.code == 0, dense_only.stderr
    manifest = Bundle.open(dense_only.out).manifest
    assert manifest.heads == (Head.DENSE,)
    assert manifest.geometry.colbert_dim is None
    assert manifest.parity["onnx-int8"].sparse is manifest.parity["onnx-int8"].colbert is None
    with M3Encoder.open(dense_only.out) as encoder:
        assert encoder.encode(["What is BGE M3?"])["dense_vecs"].shape == (1, 64)
        for head in ("return_sparse", "return_colbert_vecs"):
            with pytest.raises(HeadError, match="dense"):
                encoder.encode(["What is BGE M3?"], **{head: True})


def test_a_subset_of_variants_writes_only_that(dense_only: Done):
    manifest = Bundle.open(dense_only.out).manifest
    assert [variant.name for variant in manifest.variants] == list(manifest.parity) == ["onnx-int8"]
    assert {path for path in files(dense_only.out) if "/" in path} == {
        "onnx/model_int8.onnx", "onnx/model_int8.onnx.data", "1_Pooling/config.json",
        "onnx/last_hidden_state_int8.onnx",
    }  # fmt: skip


def test_what_is_over_budget_and_allowed_is_reported(dense_only: Done):
    assert "OVER BUDGET (allowed): dense cosine min: measured 0.99" in dense_only.stdout
    assert "budget 1" in dense_only.stdout
    assert "dense_min=1.0" in Bundle.open(dense_only.out).manifest.recipe["budget"]


def test_progress_goes_to_stderr_and_the_table_to_stdout(dense_only: Done):
    assert re.search(r"^\[ +\d+\.\d s\] Tracing the graph …$", dense_only.stderr, re.MULTILINE)
    for step in ("Reading checkpoint tuned", "PyTorch FP32 reference", "Writing onnx-int8", "parity of onnx-int8"):
        assert step in dense_only.stderr
    assert dense_only.stdout.strip().startswith(f"Bundle {dense_only.out}: tuned, pooling cls, m3-")
    assert "[" not in dense_only.stdout


def test_half_precision_and_its_upcast_copy_are_one_space(
    dense_only: Done, half_precision: Path, tmp_path: Path, tiny_bundle: Path
):
    folder = Path(shutil.copytree(half_precision, tmp_path / "upcast"))
    state = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors")
    done = command(folder, "--heads", "dense", "--variants", "onnx-fp32", "--json", "--quiet", tmp_path / "bundle")
    assert (done.code, done.stderr) == (0, "")
    upcast, half = (Bundle.open(path).manifest for path in (done.out, dense_only.out))
    assert upcast.space_id == half.space_id
    assert upcast.source.weights_sha256 == half.source.weights_sha256
    assert upcast.source.files != half.source.files
    assert upcast.space_id != Bundle.open(tiny_bundle).manifest.space_id
    assert json.loads(done.stdout)["space_id"] == upcast.space_id


# Over budget


def test_over_budget_is_exit_3_with_every_figure_and_the_remedies(over_budget: Done):
    assert (over_budget.code, over_budget.stdout) == (3, "")
    message = over_budget.stderr.partition("m3-export: ")[2]
    assert message.startswith("over budget, no bundle was written:")
    assert "onnx-int8: dense cosine min: measured 0.99" in message
    assert "onnx-int8: ColBERT token cosine p5: measured 0.99" in message
    assert "sparse weighted Jaccard" not in message
    for remedy in ("--variants", "--budget", "--allow-over-budget"):
        assert remedy in message


def test_over_budget_leaves_nothing_behind(over_budget: Done):
    assert names(over_budget.out.parent) == set()


# Interrupted


def test_what_somebody_wrote_at_out_in_the_meantime_is_not_replaced(tiny_random_checkpoint: Path, tmp_path: Path):
    out = tmp_path / "bundle"

    class Meanwhile(Progress):
        """A user who writes there while the graph is traced."""

        def say(self, message: str) -> None:
            if message.startswith("Tracing") and not out.exists():
                out.mkdir()
                (out / "thesis.tex").write_text("precious")

    options = ExportOptions(variants=(VariantName.ONNX_FP32,), heads=(Head.DENSE,))
    with pytest.raises(InputError, match="exists"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the command does
        export(str(tiny_random_checkpoint), out, options, force=False, revision=None, progress=Meanwhile(quiet=True))
    assert files(tmp_path) == {"bundle/thesis.tex": b"precious"}


def test_interrupted_exports_leave_no_bundle_and_the_next_one_clears_up(tmp_path: Path):
    def start(out: Path) -> subprocess.Popen[str]:
        words = [*M3_EXPORT, "tiny-random", str(out)]
        return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait_for(process: subprocess.Popen[str], text: str) -> None:
        assert process.stderr is not None
        assert any(text in line for line in process.stderr), f"ended before {text!r}"

    killed, stopped = tmp_path / "killed/bundle", tmp_path / "stopped/bundle"
    with start(killed) as first, start(stopped) as second:
        wait_for(first, "PyTorch FP32 reference")
        first.kill()
        wait_for(second, "PyTorch FP32 reference")
        second.send_signal(signal.SIGINT)
        assert (
            second.communicate(timeout=PATIENCE_S)[1].splitlines()[-1] == "m3-export: interrupted, nothing was written"
        )
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, 130)
    assert names(stopped.parent) == set()
    (left,) = killed.parent.iterdir()
    assert left.name.startswith(".bundle.partial-")
    assert "tokenizer.json" in names(left / "bundle")
    # the next export clears the leftover, even if it fails itself
    assert command("no-such-model", killed).code == 2
    assert names(killed.parent) == set()


# Usage


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
        (["--plan"], ("--plan", "expected one argument")),
        (["--target", "gpu"], ("--target", "vnni")),
        (["--calibration-texts", "missing.txt"], ("calibration texts missing.txt", "No such file")),
        (["--pooling", "max"], ("--pooling", "last_token")),
        (["--bogus"], ("--bogus",)),
    ],
    ids=" ".join,
)
def test_usage_errors_are_exit_2_and_touch_nothing(tmp_path: Path, words: list[str], named: tuple[str, ...]):
    done = command("no-such-source", *words, tmp_path / "bundle")
    assert (done.code, done.stdout) == (2, "")
    assert all(word in done.stderr for word in named), done.stderr
    assert names(tmp_path) == set()


@pytest.mark.parametrize("words", [[], ["tiny-random"], ["tiny-random", "a", "b"], ["verify-golden"]], ids=str)
def test_a_wrong_number_of_words_is_exit_2(words: list[str]):
    done = command(*words) if words else command_without_words()
    assert done.code == 2
    assert "usage: m3-export" in done.stderr


def command_without_words() -> Done:
    done = subprocess.run(M3_EXPORT, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    return Done(done.returncode, done.stdout, done.stderr, Path())


def test_help_names_sources_exit_codes_and_defaults():
    done = command("--help")
    assert (done.code, done.stderr) == (0, "")
    for word in ("mini-m3", "tiny-random", "BAAI/bge-m3", "checkpoint-N/", "verify-golden", "3 over budget"):
        assert word in done.stdout, word
    assert BUDGET in "".join(done.stdout.split())


@pytest.fixture
def occupied(tiny_bundle: Path, tmp_path: Path) -> Iterator[Path]:
    """A bundle that must come out of a test as it went in."""
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    before = files(out)
    yield out
    assert files(out) == before
    assert names(tmp_path) == {"bundle"}


def test_an_existing_bundle_is_refused_before_the_source_is_looked_at(occupied: Path):
    message = message_of(command("no-such-source", occupied), 2)
    assert message == f"{str(occupied)!r} exists; choose another folder, or pass --force to replace the bundle there"


def test_a_failed_export_with_force_leaves_the_older_bundle(occupied: Path):
    assert "no-such-source" in message_of(command("no-such-source", "--force", occupied), 2)


def test_force_refuses_a_folder_that_is_no_bundle(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    message = message_of(command("tiny-random", "--force", tmp_path), 2)
    assert "is not a bundle; --force replaces bundles only" in message
    assert names(tmp_path) == {"thesis.tex"}


# Failed


def test_a_wrong_checkpoint_is_exit_2_names_the_file_and_leaves_nothing(tiny_random_checkpoint: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "checkpoint"))
    (folder / "sparse_linear.pt").write_bytes((folder / "sparse_linear.pt").read_bytes()[:100])
    out = tmp_path / "deep/down/bundle"
    message = message_of(command(folder, "--quiet", out), 2)
    assert message.startswith("sparse_linear.pt: not a plain file of tensors")
    (folder / "sparse_linear.pt").unlink()
    message = message_of(command(folder, "--quiet", out), 2)
    assert message.startswith("sparse_linear.pt not found in checkpoint.") and "--heads dense" in message
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in message_of(command(folder, "--heads", "dense", "--quiet", out), 2)
    assert names(out.parent) == set()


def test_a_target_below_a_file_is_exit_1(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in message_of(command("tiny-random", tmp_path / "file/bundle"), 1)


# Just the checkpoint


def test_checkpoint_only_writes_the_checkpoint(tiny_random_checkpoint: Path, tmp_path: Path):
    done = command("tiny-random", "--checkpoint-only", tmp_path / "checkpoint")
    assert done.code == 0
    assert done.stdout.startswith(f"{done.out}: checkpoint tiny-random (")
    assert files(done.out) == files(tiny_random_checkpoint)
    assert names(tmp_path) == {"checkpoint"}


def test_checkpoint_only_is_of_named_models_and_replaces_nothing(tiny_random_checkpoint: Path, tmp_path: Path):
    message = message_of(command("BAAI/bge-m3", "--checkpoint-only", tmp_path / "new"), 2)
    assert "--checkpoint-only writes a named model: mini-m3, tiny-random" in message
    message = message_of(command("tiny-random", "--checkpoint-only", "--force", tmp_path), 2)
    assert message == f"{str(tmp_path)!r} exists; choose another folder for the checkpoint"
    assert names(tmp_path) == set()


# Published numbers


def as_if_real(bundle: Path, out: Path) -> Path:
    """A copy that says it is BAAI/bge-m3."""
    shutil.copytree(bundle, out)
    manifest = Bundle.open(out).manifest
    renamed = replace(manifest, source=replace(manifest.source, name="BAAI/bge-m3"))
    (out / "manifest.json").write_text(renamed.to_text(), encoding="utf-8")
    return out


def test_verify_golden_skips_another_model_with_the_reason(tiny_bundle: Path):
    done = command("verify-golden", tiny_bundle)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.startswith("SKIPPED: the bundle is of 'tiny-random'; the published numbers are of BAAI/bge-m3's")
    assert "m3-export BAAI/bge-m3 OUT" in done.stdout
    done = command("verify-golden", "--json", tiny_bundle)
    assert done.code == 0
    result = json.loads(done.stdout)
    assert (result["failed"], result["checks"]) == (False, []) and "tiny-random" in result["skipped"]


@pytest.mark.parametrize(
    ("name", "is_it"), [("mini-m3", False), ("bge-m3", True), ("BAAI/bge-m3", True), ("bge-m3-v2", False)]
)
def test_only_the_real_model_is_compared(tiny_bundle: Path, name: str, is_it: bool):
    manifest = Bundle.open(tiny_bundle).manifest
    reason = golden.why_not(replace(manifest, source=replace(manifest.source, name=name)))
    assert reason is None if is_it else name in str(reason)


def test_verify_golden_finds_the_numbers_of_a_wrong_model_off(tiny_bundle: Path, tmp_path: Path):
    wrong = as_if_real(tiny_bundle, tmp_path / "bundle")
    done = command("verify-golden", wrong)
    assert (done.code, done.stderr) == (1, "")
    off = [line for line in done.stdout.splitlines() if line.startswith("OFF")]
    assert len(off) > 15
    assert any("dense Q1 P1" in line and "published 0.6259035" in line for line in off)
    result = json.loads(command("verify-golden", "--json", wrong).stdout)
    assert result["failed"] and sum(not check["holds"] for check in result["checks"]) == len(off)


def test_verify_golden_holds_when_the_numbers_are_the_models_own(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bundle = as_if_real(tiny_bundle, tmp_path / "bundle")
    with M3Encoder.open(bundle, variant="onnx-fp32") as encoder:
        found = encoder.encode([*golden.QUERIES, *golden.PASSAGES], return_sparse=True, return_colbert_vecs=True)
        words = [encoder.convert_id_to_token(found["lexical_weights"][q]) for q in range(2)]
        lexical = [
            encoder.compute_lexical_matching_score(found["lexical_weights"][0], found["lexical_weights"][2 + p])
            for p in (0, 1)
        ]
        colbert = [encoder.colbert_score(found["colbert_vecs"][0], found["colbert_vecs"][2 + p]) for p in (0, 1)]
    dense = np.asarray(found["dense_vecs"])
    monkeypatch.setattr(golden, "DENSE", dense[:2] @ dense[2:].T)
    monkeypatch.setattr(golden, "LEXICAL_WEIGHTS", words)
    monkeypatch.setattr(golden, "LEXICAL_SCORES", lexical)
    monkeypatch.setattr(golden, "COLBERT_SCORES", colbert)
    monkeypatch.setattr(golden, "COLBERT_ROWS", (len(found["colbert_vecs"][0]), len(found["colbert_vecs"][2])))
    assert golden.verify_golden(bundle, "onnx-fp32").failed is False
    monkeypatch.setattr(golden, "COLBERT_SCORES", [colbert[0] + 2e-4, colbert[1]])
    assert [check.name for check in golden.verify_golden(bundle, "onnx-fp32").checks if not check.holds] == [
        "ColBERT Q1 P1"
    ]
    monkeypatch.setattr(golden, "LEXICAL_WEIGHTS", [words[0], dict(list(words[1].items())[1:])])
    off = [check for check in golden.verify_golden(bundle, "onnx-fp32").checks if not check.holds]
    assert any(check.name.startswith("weight Q2") and check.published == 0.0 for check in off), "a word too many is off"


def test_a_number_that_is_none_does_not_hold():
    assert golden.Check("x", 0.5, 0.5, 1e-4).holds
    assert not golden.Check("x", 0.5, float("nan"), 1e-4).holds


@pytest.mark.parametrize("flaw", ["missing", "no bundle", "damaged", "variant", "dense-only"])
def test_verify_golden_on_what_cannot_be_compared_is_exit_1(
    flaw: str, tiny_bundle: Path, dense_only: Done, tmp_path: Path
):
    bundle, words = tmp_path / "bundle", []
    if flaw == "no bundle":
        bundle.mkdir()
    elif flaw == "damaged":
        shutil.copytree(tiny_bundle, bundle)
        (bundle / "tokenizer.json").write_text("{}")
    elif flaw == "variant":
        bundle, words = tiny_bundle, ["--variant", "onnx-fp16"]
    elif flaw == "dense-only":
        bundle, words = as_if_real(dense_only.out, bundle), ["--variant", "onnx-int8"]
    message = message_of(command("verify-golden", *words, bundle), 1)
    named = {"variant": "onnx-fp16", "dense-only": "dense-only", "damaged": "tokenizer.json"}.get(flaw, "bundle")
    assert named in message
