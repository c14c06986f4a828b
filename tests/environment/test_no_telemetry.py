"""The engines would write an id to the home folder and send it out; here they do neither."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ENCODE = """
import sys
from m3_runtime import M3Encoder
for variant in ("openvino-int8", "onnx-int8"):
    with M3Encoder.open(sys.argv[1], variant=variant) as encoder:
        encoder.encode(["What is BGE M3?"])
assert {"openvino", "onnxruntime"} <= sys.modules.keys()
"""
EXPORT = "import sys; from m3_export.cli import main; sys.exit(main(sys.argv[1:]))"
# where one of these is set, ONNX Runtime is silent by itself
CI_NAMES = (
    "CI", "APPVEYOR", "BUILDKITE", "CIRCLECI", "CODEBUILD_BUILD_ID", "GITHUB_ACTIONS", "GITLAB_CI", "JENKINS_URL",
    "TEAMCITY_VERSION", "TF_BUILD", "TRAVIS",
)  # fmt: skip
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
    for name in ("XDG_CACHE_HOME", *CI_NAMES):
        env.pop(name, None)
    command = [sys.executable, "-c", NO_NETWORK + code, *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "a connection to" not in done.stderr
    return home


def test_encoding_leaves_no_trace(tiny_bundle: Path, tmp_path: Path):
    home = run_with_empty_home(tmp_path, ENCODE, tiny_bundle)
    assert [path.name for path in home.rglob("*")] == []


def test_exporting_leaves_no_trace(tiny_bundle: Path, tmp_path: Path):
    plan = tiny_bundle / "plan.json"
    home = run_with_empty_home(tmp_path, EXPORT, "tiny-random", tmp_path / "out", "--plan", plan, "--quiet")
    assert not [path for path in home.rglob("*") if {"intel", "microsoft"} & {part.lower() for part in path.parts}]
    assert not list(home.rglob("*openvino*")) and not list(home.rglob("*onnxruntime*"))


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


def test_the_net_catches_onnxruntime(tmp_path: Path):
    """Imported plainly, it leaves its queue behind: it is our import that keeps it from that."""
    home = run_with_empty_home(tmp_path, "import onnxruntime")
    assert list(home.rglob("*onnxruntime*"))
