"""The runtime encodes in a process that refuses everything the exporter needs."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys

REFUSED = ("torch", "transformers", "onnx", "nncf", "optimum", "onnxruntime.quantization", "m3_export", "m3_models")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if any(name == refused or name.startswith(refused + ".") for refused in REFUSED):
            raise AssertionError(f"the runtime imports {name}")
        return None

sys.meta_path.insert(0, Refuse())

from m3_runtime import M3Encoder
import m3_runtime.flag, m3_runtime.cli, m3_runtime.bundle.space
import m3_runtime.compat.fastembed, m3_runtime.compat.sentence_transformers

with M3Encoder.open(sys.argv[1], variant=sys.argv[2]) as encoder:
    result = encoder.encode("one sentence", return_sparse=True, return_colbert_vecs=True)
    encoder.compute_score(("a query", "a passage"))
assert result["dense_vecs"].shape == (encoder.bundle.manifest.geometry.hidden_size,)
assert not [name for name in REFUSED if name in sys.modules]
"""


@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-int8", "openvino-int8"])
def test_a_sentence_is_encoded_without_the_exporters_packages(tiny_bundle: Path, variant: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tiny_bundle), variant], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_net_catches_something() -> None:
    code = CODE.replace("import m3_runtime.flag", "import onnx, m3_runtime.flag")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "the runtime imports onnx" in done.stderr
