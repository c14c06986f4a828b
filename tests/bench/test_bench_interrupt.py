"""Ctrl-C in m3-bench: exit code 130 and one line, whatever an engine computes; what was written is whole."""

import signal
import subprocess
import sys
from pathlib import Path

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
