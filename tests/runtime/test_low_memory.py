"""`low_memory`: the same vectors, another way to hold the weights."""

import json
import subprocess
import sys

import numpy as np
import pytest

from m3_runtime import Bundle, M3Encoder
from m3_runtime.cpu import CpuInfo
from m3_runtime.engines import ort
from m3_runtime.engines.opening import Opening
from m3_runtime.engines.select import open_engine
from m3_runtime.flag import BGEM3FlagModel

VARIANTS = ["onnx-fp32", "onnx-int8", "openvino-int8"]
NEW_X86 = CpuInfo("n", "x86_64", frozenset({"avx2", "avx512_vnni"}))
OLD_X86 = CpuInfo("o", "x86_64", frozenset({"avx2"}))
ARM = CpuInfo("a", "aarch64", frozenset({"asimddp"}))
PREPACKING_OFF = "session.disable_prepacking"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_vectors(mini_bundle, texts, variant):
    """Float products without packed weights add in another order, which moves the last bits."""
    heads = {"return_sparse": True, "return_colbert_vecs": True}
    with (
        M3Encoder.open(mini_bundle, variant=variant, threads=2) as plain,
        M3Encoder.open(mini_bundle, variant=variant, threads=2, low_memory=True) as low,
    ):
        for corpus in (texts, [" ".join(texts)] * 3):
            first, second = plain.encode(corpus, **heads), low.encode(corpus, **heads)
            np.testing.assert_allclose(first.dense_vecs, second.dense_vecs, atol=2e-6)
            assert first.sparse.ids.tolist() == second.sparse.ids.tolist()
            np.testing.assert_allclose(first.sparse.weights, second.sparse.weights, atol=1e-5)
            for a, b in zip(first.colbert_vecs, second.colbert_vecs, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("cpu", "is_int8", "is_off"),
    [(NEW_X86, True, True), (NEW_X86, False, True), (ARM, True, True), (OLD_X86, False, True), (OLD_X86, True, False)],
)
def test_weights_stay_as_they_are_mapped_unless_they_are_converted_anyway(monkeypatch, cpu, is_int8, is_off):
    monkeypatch.setattr(ort, "cpu_info", lambda: cpu)
    assert (PREPACKING_OFF in ort.session_config({}, is_int8=is_int8, low_memory=True)) is is_off
    assert PREPACKING_OFF not in ort.session_config({}, is_int8=is_int8)


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_session_is_opened_so(tiny_bundle, low_memory):
    bundle = Bundle.open(tiny_bundle)
    engine = open_engine(bundle, bundle.variant("onnx-fp32"), 1, Opening(low_memory=low_memory))
    options = engine._session.get_session_options()  # type: ignore[attr-defined]
    assert options.enable_cpu_mem_arena is not low_memory
    if low_memory:
        assert options.get_session_config_entry(PREPACKING_OFF) == "1"
    engine.close()


def test_flagembeddings_class_takes_it(tiny_bundle):
    plain, low = (BGEM3FlagModel(tiny_bundle, variant="onnx-fp32", low_memory=low) for low in (False, True))
    np.testing.assert_allclose(low.encode(["a b"])["dense_vecs"], plain.encode(["a b"])["dense_vecs"], atol=2e-6)
    assert low.encoder._engine._session.get_session_options().enable_cpu_mem_arena is False
    plain.close()
    low.close()


@pytest.mark.parametrize("options", [(), ("--low-memory",)])
def test_the_command_takes_both(tiny_bundle, tmp_path, options):
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "m3_runtime", "encode", tiny_bundle, "--variant", "openvino-int8", *options]
    lines = []
    for _ in range(2):
        done = subprocess.run(
            [*map(str, command), "--cache-dir", str(cache)],
            input="some words\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        lines.append(json.loads(done.stdout))
    assert lines[0] == lines[1]
    assert [file.suffix for file in cache.iterdir()] == [".compiled"]
