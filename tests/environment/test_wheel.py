"""The wheel, built from the sdist and alone in an empty environment: it encodes, and names what is missing."""

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BANNED = ("torch", "transformers", "onnx", "nncf", "openvino", "onnxscript", "safetensors")
ENCODE = """
import importlib.util, json, sys
from m3_runtime import M3Encoder
with M3Encoder.open(sys.argv[1], threads=1) as encoder:
    found = encoder.encode(["What is BGE M3?", "BGE M3 是什么？"], return_sparse=True, return_colbert_vecs=True)
print(json.dumps({
    "variant": encoder.variant.name,
    "dense": list(found.dense_vecs.shape),
    "rows": [len(rows) for rows in found.colbert_vecs],
    "weights": [len(weights) for weights in found.lexical_weights],
    "installed": [name for name in sys.argv[2:] if importlib.util.find_spec(name)],
}))
"""
DATA = """
import importlib.util, json, pathlib
found = {}
for package in ("m3_runtime", "m3_export", "m3_models", "m3_bench"):
    folder = pathlib.Path(importlib.util.find_spec(package).origin).parent
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    found[package] = sorted(path.relative_to(folder).as_posix() for path in files)
print(json.dumps(found))
"""


def run(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run where no source tree is."""
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, cwd=cwd, timeout=300)


def command(bare_python: Path, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as pip installed it."""
    name, *arguments = words
    return run(bare_python.with_name(str(name)), *arguments, cwd=cwd)


def test_encodes_without_anything_else(bare_python, tiny_bundle, tmp_path):
    done = run(bare_python, "-c", ENCODE, tiny_bundle, *BANNED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["installed"] == []
    assert found["variant"] == "onnx-int8"  # openvino is an extra
    assert found["dense"] == [2, 64]
    assert all(count > 0 for count in (*found["rows"], *found["weights"]))


def test_the_missing_engine_is_named(bare_python, tiny_bundle, tmp_path):
    code = f"from m3_runtime import M3Encoder; M3Encoder.open({str(tiny_bundle)!r}, engine='openvino')"
    done = run(bare_python, "-c", code, cwd=tmp_path)
    assert done.returncode == 1
    assert 'pip install "m3-runtime[openvino]"' in done.stderr


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (("m3-export", "mini-m3", "out"), "export"),
        (("m3-bench", "run", "bundle"), "bench"),
        (("m3-runtime", "serve", "bundle"), "serve"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_command_without_its_packages_names_the_extra(bare_python, tmp_path, words, extra):
    done = command(bare_python, *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f'pip install "m3-runtime[{extra}]"' in done.stderr
    assert done.stderr.startswith(f"{words[0]}: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_the_commands_read_is_in_the_wheel(bare_python, tmp_path):
    """Everything beside code that a package's folder has in the source tree: texts, heads, plans' costs, templates."""
    found = json.loads(run(bare_python, "-c", DATA, cwd=tmp_path).stdout)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    for package in map(Path, packages["packages"]):
        files = [path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
        assert found[package.name] == sorted(path.relative_to(ROOT / package).as_posix() for path in files)
    assert "data/mini_m3_heads.safetensors" in found["m3_models"]
    assert "calibration/texts/probe.jsonl" in found["m3_export"]
    assert "scenarios/standard.toml" in found["m3_bench"]
    assert all("py.typed" in found[package] for package in ("m3_runtime", "m3_export", "m3_models"))


@pytest.mark.parametrize("name", ["m3-runtime", "m3-export"])
def test_a_command_says_its_version(bare_python, tmp_path, name):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert command(bare_python, name, "--version", cwd=tmp_path).stdout == f"{name} {version}\n"


def test_a_command_runs(bare_python, tiny_bundle, tmp_path):
    done = command(bare_python, "m3-runtime", "info", tiny_bundle, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tiny-random" in done.stdout
