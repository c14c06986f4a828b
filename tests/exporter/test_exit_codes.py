"""What scripts go by: 0 done, 1 failed, 2 wrong usage or wrong input, 3 over budget, 130 interrupted.

Codes 3 and 130 are tested where exports are: test_export_bundles and test_export_failures.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from m3_export.cli import main
from m3_runtime.version import __version__
from patience import PATIENCE_S


def test_version(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"m3-export {__version__}\n")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").write_text("[" * 200_000), "config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100), "model.safetensors"),
        (lambda folder: (folder / "colbert_linear.pt").unlink(), "colbert_linear.pt"),
        (lambda folder: (folder / "tokenizer.json").write_text("[]"), "tokenizer"),
        (lambda folder: (folder / "modules.json").write_text("{}"), "modules.json"),
    ],
    ids=["no config", "config", "deep config", "weights", "no head", "tokenizer", "modules"],
)
def test_a_wrong_checkpoint_is_wrong_input(
    tiny_random_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    named: str,
):
    folder = Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "checkpoint"))
    damage(folder)
    assert main([str(folder), str(tmp_path / "bundle"), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("m3-export: ") and named in message
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("plan", ["missing.json", "of-another-model.json"])
def test_a_wrong_plan_is_wrong_input_found_before_the_reference_runs(
    tiny_random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], plan: str
):
    (tmp_path / "of-another-model.json").write_text('{"plan_schema": 1, "geometry": {"layers": 24}, "variants": {}}')
    flags = ["--plan", str(tmp_path / plan)]
    assert main([str(tiny_random_checkpoint), str(tmp_path / "bundle"), *flags]) == 2
    progress = capsys.readouterr().err
    assert plan in progress.splitlines()[-1]
    assert "reference" not in progress


def test_a_file_system_that_refuses_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("x")
    assert main(["tiny-random", str(tmp_path / "file" / "checkpoint"), "--checkpoint-only", "--quiet"]) == 1
    assert capsys.readouterr().err.endswith(", nothing was written\n")


def test_a_reader_that_is_gone_is_a_failure_without_a_traceback(tmp_path: Path):
    words = ["tiny-random", str(tmp_path / "checkpoint"), "--checkpoint-only", "--quiet"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "m3_export", *words],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
