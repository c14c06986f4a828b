"""Exports by m3-export that fail or are interrupted: exit code, one line that names the cause, nothing left behind."""

import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from export_command import FEW, PROBE, Done, export, files, names

from m3_export.options import ExportOptions, VariantName
from m3_export.pipeline import export as export_bundle
from m3_runtime.bundle.manifest import Head
from m3_runtime.errors import InputError
from m3_runtime.io.progress import Progress
from patience import PATIENCE_S


def failure(done: Done, code: int) -> str:
    """The one line that a failed run says."""
    assert (done.code, done.stdout) == (code, ""), done
    line = done.stderr.splitlines()[-1]
    assert line.startswith("m3-export: ") and "Traceback" not in done.stderr
    return line.removeprefix("m3-export: ")


@pytest.fixture(scope="module")
def over_budget(tiny_random_checkpoint: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    out = tmp_path_factory.mktemp("over") / "bundle"
    strict = ("--variants", "onnx-int8", "--budget", "dense_min=1,colbert_p5=1", "--plan", tiny_bundle / "plan.json")
    return export(tiny_random_checkpoint, *strict, *FEW, "--json", out)


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


# Failed


@pytest.fixture
def occupied(tiny_bundle: Path, tmp_path: Path) -> Iterator[Path]:
    """A bundle that must come out of a test as it went in."""
    out = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    before = files(out)
    yield out
    assert files(out) == before
    assert names(tmp_path) == {"bundle"}


def test_an_existing_bundle_is_refused_before_the_source_is_looked_at(occupied: Path):
    message = failure(export("no-such-source", occupied), 2)
    assert message == f"{str(occupied)!r} exists; choose another folder, or pass --force to replace the bundle there"


def test_a_failed_export_with_force_leaves_the_older_bundle(occupied: Path):
    assert "no-such-source" in failure(export("no-such-source", "--force", occupied), 2)


def test_force_refuses_a_folder_that_is_no_bundle(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("precious")
    message = failure(export("tiny-random", "--force", tmp_path), 2)
    assert "is not a bundle; --force replaces bundles only" in message
    assert names(tmp_path) == {"thesis.tex"}


def test_a_wrong_checkpoint_is_exit_2_names_the_file_and_leaves_nothing(tiny_random_checkpoint: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "checkpoint"))
    (folder / "sparse_linear.pt").write_bytes((folder / "sparse_linear.pt").read_bytes()[:100])
    out = tmp_path / "deep/down/bundle"
    message = failure(export(folder, "--quiet", out), 2)
    assert message.startswith("sparse_linear.pt: not a plain file of tensors")
    (folder / "sparse_linear.pt").unlink()
    message = failure(export(folder, "--quiet", out), 2)
    assert message.startswith("sparse_linear.pt not found in checkpoint.") and "--heads dense" in message
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in failure(export(folder, "--heads", "dense", "--quiet", out), 2)
    assert names(out.parent) == set()


def test_a_target_below_a_file_is_exit_1(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    assert str(tmp_path / "file") in failure(export("tiny-random", tmp_path / "file/bundle"), 1)


# Interrupted


def test_what_somebody_wrote_at_out_in_the_meantime_is_not_replaced(tiny_random_checkpoint: Path, tmp_path: Path):
    out = tmp_path / "bundle"

    class Meanwhile(Progress):
        """A user who writes there while the graph is traced."""

        def say(self, message: str) -> None:
            if message.startswith("Tracing") and not out.exists():
                out.mkdir()
                (out / "thesis.tex").write_text("precious")

    options = ExportOptions(variants=(VariantName.ONNX_FP32,), heads=(Head.DENSE,), probe_texts=PROBE)
    with pytest.raises(InputError, match="exists"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the command does
        export_bundle(
            str(tiny_random_checkpoint), out, options, force=False, revision=None, progress=Meanwhile(quiet=True)
        )
    assert files(tmp_path) == {"bundle/thesis.tex": b"precious"}


# As C code does, a run of PyTorch's or of an engine's does not end for Ctrl-C. This one would never end.
ENDLESS = """
import sys, time
from transformers import XLMRobertaModel
from m3_export.cli import main

def run(*_, **__):
    words = iter(["computing", "waiting"])
    while True:
        try:
            print(next(words, "ending"), flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            pass

XLMRobertaModel.forward = run
sys.exit(main(sys.argv[1:]))
"""


def test_a_second_interrupt_ends_at_once_and_the_next_export_clears_up(tiny_random_checkpoint: Path, tmp_path: Path):
    out = tmp_path / "bundle"
    words = [tiny_random_checkpoint, out, "--heads", "dense", "--variants", "onnx-fp32", "--quiet"]
    command = [sys.executable, "-c", ENDLESS, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for said in ("computing\n", "waiting\n"):
                assert process.stdout.readline() == said
                process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == 130
    assert stderr.startswith("m3-export: interrupted twice, ended at once; ")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".bundle.partial-")
    assert export("no-such-model", out).code == 2
    assert names(tmp_path) == set()


def test_an_interrupted_export_leaves_nothing(tmp_path: Path):
    """One that is killed leaves what the next clears up: see test_bundle_writer."""
    words = [sys.executable, "-m", "m3_export", "tiny-random", str(tmp_path / "bundle")]
    with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("PyTorch FP32 reference" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said.splitlines()[-1]) == (130, "m3-export: interrupted, nothing was written")
    assert names(tmp_path) == set()
