"""`low_memory`: the same vectors to the bit, and no memory kept between runs."""

import json
import subprocess
import sys

import numpy as np
import pytest

from commands import run_main
from m3_runtime import M3Encoder
from m3_runtime.cli import main
from m3_runtime.flag import BGEM3FlagModel
from patience import PATIENCE_S

VARIANTS = ["onnx-fp32", "onnx-int8", "openvino-int8"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_vectors(tiny_bundle, texts, variant):
    heads = {"return_sparse": True, "return_colbert_vecs": True}
    with (
        M3Encoder.open(tiny_bundle, variant=variant, threads=2) as plain,
        M3Encoder.open(tiny_bundle, variant=variant, threads=2, low_memory=True) as low,
    ):
        for corpus in (texts, [" ".join(texts)] * 3):
            first, second = plain.encode(corpus, **heads), low.encode(corpus, **heads)
            assert np.array_equal(first.dense_vecs, second.dense_vecs)
            assert np.array_equal(first.sparse.ids, second.sparse.ids)
            assert np.array_equal(first.sparse.weights, second.sparse.weights)
            assert all(map(np.array_equal, first.colbert_vecs, second.colbert_vecs))


HOLDS = """
import sys
import numpy as np
from pathlib import Path
from m3_runtime import Bundle
from m3_runtime.engines import Opening, TokenBatch
from m3_runtime.engines.select import open_engine
from m3_runtime.bundle.manifest import Head

bundle = Bundle.open(sys.argv[1])
engine = open_engine(bundle, bundle.variant(sys.argv[2]), 1, Opening(low_memory=sys.argv[3] == "True"))
ids = np.full((64, 512), 5)
engine.run(TokenBatch(ids, np.ones_like(ids)), [Head.DENSE, Head.SPARSE])
held = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
print(int(held.split()[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what a process holds")
@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-int8"])
def test_less_is_held_when_a_large_batch_is_over(tiny_bundle, variant):
    held_mib = []
    for low_memory in (True, False):
        command = [sys.executable, "-c", HOLDS, tiny_bundle, variant, low_memory]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
        held_mib.append(int(done.stdout))
    assert held_mib[0] < held_mib[1] - 16, held_mib


def test_flagembeddings_class_takes_it(tiny_bundle):
    plain, low = (BGEM3FlagModel(tiny_bundle, variant="onnx-fp32", low_memory=low) for low in (False, True))
    assert np.array_equal(low.encode(["a b"])["dense_vecs"], plain.encode(["a b"])["dense_vecs"])
    assert low.encoder.opened_with.low_memory
    assert not plain.encoder.opened_with.low_memory
    plain.close()
    low.close()


@pytest.mark.parametrize("options", [(), ("--low-memory",)])
def test_the_command_takes_both(tiny_bundle, tmp_path, options):
    cache = tmp_path / "cache"
    words = ("encode", tiny_bundle, "--variant", "openvino-int8", *options, "--cache-dir", cache)
    lines = []
    for _ in range(2):
        done = run_main(main, *words, text="some words\n")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        lines.append(json.loads(done.stdout))
    assert lines[0] == lines[1]
    assert [file.suffix for file in cache.iterdir()] == [".compiled"]


AFTER_A_PEAK = """
import sys
from pathlib import Path
from m3_runtime import M3Encoder

def mib(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith(key))

few, many = ["a b"] * 3, ["word " * 600] * 32
with M3Encoder.open(sys.argv[1], variant=sys.argv[2], threads=1) as encoder:
    encoder.encode(few, return_colbert_vecs=True)
    before = mib("VmRSS")
    encoder.encode(many, return_colbert_vecs=True, token_budget=16384)
    print(before, mib("VmHWM"), mib("VmRSS"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells what a process holds")
@pytest.mark.parametrize("variant", ["onnx-int8", "openvino-int8"])
def test_what_a_peak_took_goes_back(tiny_bundle, variant):
    command = [sys.executable, "-c", AFTER_A_PEAK, tiny_bundle, variant]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    before, peak, after = map(int, done.stdout.split())
    assert peak > before + 50
    assert after < before + (peak - before) / 4, done.stdout
