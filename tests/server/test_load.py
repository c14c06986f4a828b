"""The load script runs, and counts what the server counts. How fast either is, no test can say."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "load.py"


def test_the_load_script_counts_what_it_sends(server, tiny_bundle: Path):
    before = server.metric("m3_requests_total")
    words = ["--clients", "2", "--texts", "3", "--words", "5", "--seconds", "0.5"]
    beside = ["--bundle", str(tiny_bundle), "--variant", "onnx-fp32", "--threads", "1"]
    command = [sys.executable, str(SCRIPT), server.url, *words, *beside]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    counted = re.match(r"2 clients, 3 texts of about 5 words a request: (\d+) × 200\n", done.stdout)
    assert counted is not None, done.stdout
    assert 0 < int(counted[1]) <= server.metric("m3_requests_total") - before
    assert "encoder before:" in done.stdout and "encoder after:" in done.stdout
