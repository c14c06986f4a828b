"""examples/node encodes a bundle with the figures of Python, and refuses what its runtime would compute otherwise."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from m3_runtime import M3Encoder
from m3_runtime.cpu import cpu_info
from node import ROOT, needs_node, npm_folder, run_node

EXAMPLE = ROOT / "examples" / "node"
MANIFEST = EXAMPLE / "package.json"
TEXTS = (
    "What is BGE M3?", "Defination of BM25", "", "日本語のテキストをトークン化する。", "😀 emoji   and blanks ",
    "один два три два один", "ﬁne ＦＵＬＬ ½ Å é", "<s> literal </s> <mask> specials",
    "a\tb\nc\u200bd\xa0e\x85f \u2028 ﷺ ㍿",
    "far longer than the model takes " * 300,
)  # fmt: skip

pytestmark = needs_node


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    """The example beside its packages: modules look for these in their own folder and above."""
    digest = hashlib.sha256(MANIFEST.read_bytes()).hexdigest()[:12]
    packages = npm_folder(f"bundle-{digest}", manifest=MANIFEST)
    folder = tmp_path_factory.mktemp("example")
    for script in EXAMPLE.glob("*.mjs"):
        shutil.copy(script, folder)
    (folder / "node_modules").symlink_to(packages / "node_modules")
    return folder


def run(example: Path, *words: object, texts=TEXTS):
    return run_node(example / "encode.mjs", *words, request=texts)


@pytest.mark.parametrize("name", ["tiny_bundle", "mini_bundle"])
def test_all_heads_have_the_figures_of_python(request, example, name):
    bundle = request.getfixturevalue(name)
    done = run(example, bundle, "onnx-fp32")
    assert done.returncode == 0, done.stderr
    assert "text 10 was longer than the model takes and was cut" in done.stderr
    with M3Encoder.open(bundle, variant="onnx-fp32", threads=1) as encoder:
        expected = encoder.encode(TEXTS, return_sparse=True, return_colbert_vecs=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["tokens"] for line in lines] == list(expected.token_counts)
    np.testing.assert_allclose([line["dense_vecs"] for line in lines], expected.dense_vecs, atol=1e-5)
    for line, weights, rows in zip(lines, expected.lexical_weights, expected.colbert_vecs, strict=True):
        assert line["lexical_weights"] == pytest.approx(weights, abs=1e-5)
        np.testing.assert_allclose(np.reshape(line["colbert_vecs"], rows.shape), rows, atol=1e-5)


def test_int8_has_them_too(example, without_vnni, tiny_bundle):
    """On this processor, and as on one without VNNI, where a session option keeps products from saturating."""
    with M3Encoder.open(tiny_bundle, variant="onnx-int8", threads=1) as encoder:
        expected = encoder.encode(TEXTS).dense_vecs
    for folder in (example, without_vnni):
        done = run(folder, tiny_bundle, "onnx-int8")
        assert done.returncode == 0, done.stderr
        cosines = (expected * [json.loads(line)["dense_vecs"] for line in done.stdout.splitlines()]).sum(axis=1)
        assert cosines.min() > 0.9999  # a float at the edge of a step may fall to either side of it


def test_a_runtime_that_cannot_set_the_option_refuses_int8_in_words(without_vnni, tiny_bundle):
    module = without_vnni / "bge-m3.mjs"
    module.write_text(module.read_text().replace("CONFIGURABLE_SINCE_MINOR = 30;", "CONFIGURABLE_SINCE_MINOR = 1000;"))
    refused = run(without_vnni, tiny_bundle, "onnx-int8")
    if cpu_info().is_x86:
        assert refused.returncode == 1
        assert "variant onnx-int8 needs session.x64quantprecision on this processor" in refused.stderr
        assert "open onnx-fp32, or use Python" in refused.stderr
    assert run(without_vnni, tiny_bundle, "onnx-fp32", texts=["a"]).returncode == 0


@pytest.fixture
def without_vnni(example, tmp_path) -> Path:
    """The example, which reads a processor's flags from another file."""
    cpuinfo, folder = tmp_path / "cpuinfo", tmp_path / "example"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma\n")
    shutil.copytree(example, folder, symlinks=True)
    module = folder / "bge-m3.mjs"
    module.write_text(module.read_text().replace("/proc/cpuinfo", str(cpuinfo)))
    return folder


@pytest.mark.parametrize(
    ("words", "texts", "message"),
    [
        (["openvino-int8"], ["a"], "no variant openvino-int8 for onnxruntime; the bundle has: onnx-fp32, onnx-int8"),
        (["onnx-fp32"], ["a", 7], "text 1 is no string"),
    ],
)
def test_what_is_unknown_is_refused(example, tiny_bundle, words, texts, message):
    refused = run(example, tiny_bundle, *words, texts=texts)
    assert refused.returncode == 1
    assert message in refused.stderr


def test_a_damaged_bundle_is_refused(example, bundle_copy):
    graph = bundle_copy / "onnx" / "model.onnx"
    content = graph.read_bytes()
    graph.unlink()
    graph.write_bytes(content[:-1] + b"\0")
    refused = run(example, bundle_copy, "onnx-fp32")
    assert refused.returncode == 1
    assert "onnx/model.onnx is damaged" in refused.stderr
