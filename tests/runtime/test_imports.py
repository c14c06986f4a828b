import subprocess
import sys
import tomllib
from pathlib import Path

import m3_runtime

HEAVY = "onnxruntime", "openvino", "tokenizers", "scipy", "torch"


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_runtime_imports_no_engine():
    names = (
        "m3_runtime.flag",
        "m3_runtime.cli",
        "m3_runtime.compat.fastembed",
        "m3_runtime.compat.sentence_transformers",
    )
    assert run(f"import sys, {', '.join(names)}; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_an_encoder_imports_one_engine_only(tiny_bundle):
    code = f"""
import sys
from m3_runtime import M3Encoder
with M3Encoder.open(sys.argv[1], variant="onnx-fp32") as encoder:
    encoder.encode("a")
print([m for m in {HEAVY} if m in sys.modules])
"""
    assert run(code, str(tiny_bundle)) == "['onnxruntime', 'tokenizers']"


def test_importing_leaves_the_environment_alone():
    assert run("import os; a = dict(os.environ); import m3_runtime.cli; print(a == dict(os.environ))") == "True"


def test_every_public_name_is_there():
    assert sorted(m3_runtime.__all__) == list(m3_runtime.__all__)
    assert all(hasattr(m3_runtime, name) for name in m3_runtime.__all__)


def test_the_version_is_the_projects():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert m3_runtime.__version__ == project["version"]


def test_nothing_of_the_runtime_touches_the_network(tiny_bundle):
    code = """
import socket, sys

def refuse(*arguments, **keywords):
    raise AssertionError(f"a connection was tried: {arguments}")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
sys.addaudithook(lambda event, values: refuse(event, values) if event in ("socket.connect", "socket.sendto") else None)

from m3_runtime import Bundle, M3Encoder
for variant in Bundle.open(sys.argv[1], verify="full").manifest.variants:
    with M3Encoder.open(sys.argv[1], variant=variant.name) as encoder:
        encoder.encode("a", return_sparse=True, return_colbert_vecs=True)
        encoder.compute_score(("a", "b"))
"""
    run(code, str(tiny_bundle))
