"""Intel's packages would write an id to the home folder and send it out; here they do neither."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENCODE = """
import sys
from m3_runtime import M3Encoder
with M3Encoder.open(sys.argv[1], variant="openvino-int8") as encoder:
    encoder.encode(["What is BGE M3?"])
assert "openvino" in sys.modules
"""
EXPORT = "import sys; from m3_export.cli import main; sys.exit(main(sys.argv[1:]))"
# refuses every socket but those of this machine's own kinds, and says which was wanted
NO_NETWORK = """
import socket
def refuse(self, address, *rest):
    raise AssertionError(f"a connection to {address} was opened")
socket.socket.connect = socket.socket.connect_ex = refuse
"""


def run_with_empty_home(tmp_path: Path, code: str, *words: str | Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    env = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", NO_NETWORK + code, *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "a connection to" not in done.stderr
    return home


def test_serving_with_openvino_leaves_no_trace(tiny_bundle: Path, tmp_path: Path):
    home = run_with_empty_home(tmp_path, ENCODE, tiny_bundle)
    assert [path.name for path in home.rglob("*")] == []


def test_exporting_leaves_no_trace(tmp_path: Path):
    home = run_with_empty_home(
        tmp_path, EXPORT, "tiny-random", tmp_path / "out", "--variants", "openvino-int8", "--quiet"
    )
    assert not list(home.rglob("*openvino*")) and not (home / "intel").exists()


@pytest.mark.parametrize("module", ["openvino"])
def test_the_net_catches_something(module: str, tmp_path: Path):
    """Imported plainly, the telemetry package is there: it is our import that keeps it out."""
    code = (
        "import sys; from m3_runtime.engines.no_telemetry import without_telemetry\n"
        f"with without_telemetry():\n    import {module}\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
        "import openvino_telemetry"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300)
