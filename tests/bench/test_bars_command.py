"""`python -m m3_bench bars`, as a user runs it."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from m3_bench.bars.rows import Column, rows_for


def bars(*words) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "m3_bench", "bars", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_rows_are_measured_printed_and_written(tiny_bundle, tmp_path):
    out = tmp_path / "bars.json"
    done = bars(tiny_bundle, "--rows", "packed,mixed", "--quick", "--threads", 1, "--work", tmp_path, "-o", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["rows"]] == ["mixed", "packed"]
    for row in found["rows"]:
        assert row["outcome"] == "measured"
        assert [len(side["turns"]) for side in row["sides"]] == [1, 1]
        assert row["sides"][0]["versions"]["numpy"]
    assert found["models"][tiny_bundle.name].startswith("tiny-random")
    table = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(table) == 3
    assert "round 1 of 1" in done.stderr


def test_the_help_lists_every_row():
    done = bars("--help")
    assert done.returncode == 0
    assert all(f"  {row.name} " in done.stdout for row in rows_for(Column.VNNI))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rows", "lite"), "needs --checkpoint DIR"),
        (("--rows", "speed"), "there is no row 'speed'; rows are lite"),
        (("--rows", "regret-onnx-int8"), "there is no row 'regret-onnx-int8'"),
        (("--rows", ","), "--rows: none is given"),
        (("--rows", "mixed", "--rounds", "0"), "--rounds must be at least 1"),
        (("--rows", "mixed", "--threads", "0"), "threads must be at least 1"),
    ],
)
def test_what_is_missing_is_named_before_anything_runs(tiny_bundle, tmp_path, words, message):
    done = bars(tiny_bundle, *words, "-o", tmp_path / "bars.json")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "bars.json").exists()


def test_a_folder_that_is_no_bundle(tmp_path):
    done = bars(tmp_path, "--rows", "mixed", "-o", tmp_path / "bars.json")
    assert done.returncode == 1
    assert "m3-export" in done.stderr


def test_a_checkpoint_of_other_weights_is_refused(tiny_bundle, tiny_random_checkpoint, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_random_checkpoint, other)
    data = bytearray((other / "sparse_linear.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (other / "sparse_linear.pt").write_bytes(data)
    words = (tiny_bundle, "--rows", "lite", "-o", tmp_path / "bars.json")
    done = bars(*words, "--checkpoint", other)
    assert done.returncode == 2
    assert "sparse_linear.pt' is not what the bundle was made of" in done.stderr
    (other / "sparse_linear.pt").unlink()
    assert "has no sparse_linear.pt" in bars(*words, "--checkpoint", other).stderr


def test_bundles_of_other_weights_are_refused(tiny_bundle, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle, other)
    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(re.sub(r'"space_id": "m3-.', '"space_id": "m3-x', manifest))
    done = bars(tiny_bundle, "--plans", other, "--rows", "regret-onnx-int8", "-o", tmp_path / "bars.json")
    assert done.returncode == 2
    assert "other weights" in done.stderr
