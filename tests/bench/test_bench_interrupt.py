"""Ctrl-C in m3-bench: exit code 130 and one line, whatever an engine computes; what was written is whole."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil

from m3_bench import documents
from m3_bench.documents import Soak
from patience import has_ended, wait_until

SAMPLE = Path(__file__).parents[2] / "benchmarks" / "data" / "finetune_sample.jsonl"

# As C code does, an engine's run does not end for Ctrl-C. This one would never end.
ENDLESS = """
import sys, time
from m3_bench.cli import main
from m3_runtime.engines.ort import OrtEngine

def run(*_):
    print("computing", flush=True)
    while True:
        try:
            time.sleep(600)
        except KeyboardInterrupt:
            pass

OrtEngine.run = run
sys.exit(main(sys.argv[1:]))
"""


def test_an_engine_is_not_waited_for(tiny_bundle: Path, tmp_path: Path):
    words = ["margins", SAMPLE, tiny_bundle, "--variants", "onnx-fp32", "--quiet", "-o", tmp_path / "m.json"]
    command = [sys.executable, "-c", ENDLESS, *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "computing\n"
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, stderr) == (130, "m3-bench: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_soak_ends_with_its_server_and_keeps_its_cycles(tiny_bundle: Path, tmp_path: Path):
    out = tmp_path / "soak.json"
    words = ["soak", tiny_bundle, "--variant", "onnx-fp32", "--phase-s", "0.2", "--clients", "2", "-o", out]
    command = [sys.executable, "-m", "m3_bench", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: out.exists() or process.poll() is not None)
            (server,) = psutil.Process(process.pid).children()
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, stderr) == (130, "m3-bench: interrupted\n")
    assert len(documents.read_as(Soak, out).cycles) >= 1
    wait_until(lambda: has_ended(server.pid))
