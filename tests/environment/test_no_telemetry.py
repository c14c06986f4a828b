"""The engines would write an id to the home folder and send it out; here they do neither."""

import subprocess
import sys
from pathlib import Path

import pytest

from traceless import run_traceless

ENCODE = """
import sys
from m3_runtime import M3Encoder
for variant in ("openvino-int8", "onnx-int8"):
    with M3Encoder.open(sys.argv[1], variant=variant) as encoder:
        encoder.encode(["What is BGE M3?"])
assert {"openvino", "onnxruntime"} <= sys.modules.keys()
"""


def test_encoding_leaves_no_trace(tiny_bundle: Path, tmp_path: Path):
    run_traceless(tmp_path / "home", ENCODE, tiny_bundle)
    assert [path.name for path in (tmp_path / "home").rglob("*")] == []


def test_exporting_leaves_no_trace(homes: Path):
    assert list(homes.glob("*/home"))
    assert not [p for p in homes.rglob("*") if {"intel", "microsoft"} & {part.lower() for part in p.parts}]
    assert not list(homes.rglob("*openvino*")) and not list(homes.rglob("*onnxruntime*"))


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
    run_traceless(tmp_path / "home", "import onnxruntime")
    assert list((tmp_path / "home").rglob("*onnxruntime*"))
