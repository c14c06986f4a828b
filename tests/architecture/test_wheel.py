"""The wheel, installed alone in an empty environment, encodes with a bundle."""

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BANNED = ("torch", "transformers", "onnx", "nncf", "openvino", "onnxscript", "safetensors")
ENCODE = """
import importlib.util, json, sys
from m3_runtime import M3Encoder
with M3Encoder.open(sys.argv[1]) as encoder:
    found = encoder.encode(["What is BGE M3?", "BGE M3 是什么？"], return_sparse=True, return_colbert_vecs=True)
print(json.dumps({
    "variant": encoder.variant.name,
    "dense": list(found.dense_vecs.shape),
    "rows": [len(rows) for rows in found.colbert_vecs],
    "weights": [len(weights) for weights in found.lexical_weights],
    "installed": [name for name in sys.argv[2:] if importlib.util.find_spec(name)],
}))
"""


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory) -> Path:
    """Python of an environment that holds our wheel and its base dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("m3_runtime-*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel]
    subprocess.run(install, check=True, capture_output=True, text=True)
    return python


def test_encodes_without_anything_else(bare_python, mini_bundle, tmp_path):
    done = subprocess.run(
        [bare_python, "-c", ENCODE, mini_bundle, *BANNED], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["installed"] == []
    assert found["variant"] == "onnx-int8"  # openvino is an extra
    assert found["dense"] == [2, 384]
    assert all(count > 0 for count in (*found["rows"], *found["weights"]))


def test_the_missing_extra_is_named(bare_python, mini_bundle, tmp_path):
    code = f"from m3_runtime import M3Encoder; M3Encoder.open({str(mini_bundle)!r}, engine='openvino')"
    done = subprocess.run([bare_python, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert 'pip install "m3-runtime[openvino]"' in done.stderr


def test_exporting_without_its_packages_names_the_extra(bare_python, tmp_path):
    done = subprocess.run(
        [bare_python.parent / "m3-export", "mini-m3", tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert 'pip install "m3-runtime[export]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_models_come_with_the_wheel(bare_python, tmp_path):
    """Names, texts and trained heads are in the wheel; what they are built from is an extra."""
    code = (
        "import m3_models, importlib.resources as r; print(m3_models.names());"
        "print(r.files('m3_models').joinpath('data/mini_m3_heads.safetensors').is_file(),"
        "r.files('m3_export').joinpath('texts/probe.jsonl').is_file(),"
        "r.files('m3_runtime').joinpath('py.typed').is_file())"
    )
    done = subprocess.run([bare_python, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.splitlines() == [str(("mini-m3", "tiny-random", "synthetic-xlmr-large")), "True True True"]


def test_the_command_is_installed(bare_python, mini_bundle):
    done = subprocess.run(
        [bare_python.parent / "m3-runtime", "info", mini_bundle], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mini-m3" in done.stdout
