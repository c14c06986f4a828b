"""Several workers behind one address."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest
from running import Running, events, running

from patience import PATIENCE_S, has_ended, wait_until

WORDS = ("--variant", "onnx-fp32", "--workers", "2", "--low-memory", "--metrics-port", "0")


@pytest.fixture(scope="module")
def two(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory):
    with running(tiny_bundle, tmp_path_factory.mktemp("two"), *WORDS) as started:
        events(started, "all_workers_serve", 1)
        yield started


def ask(server: Running, text: str) -> httpx2.Response:
    """On a connection of its own: any worker may take it."""
    return httpx2.post(f"{server.url}/embed", json={"inputs": text}, timeout=PATIENCE_S, trust_env=False)


def test_memory_is_reported_for_each_and_for_all(two):
    (line,) = events(two, "all_workers_serve", 1)
    assert len(line["resident_mib"]) == line["workers"] == 2
    assert 0 < line["together_mib"] < sum(line["resident_mib"])


def test_all_workers_answer_alike_and_are_counted_together(two, encoder):
    before = two.metric("m3_texts_total")
    expected = encoder.encode("one of two").dense_vecs
    for _ in range(20):
        np.testing.assert_allclose(np.array(ask(two, "one of two").json()[0], np.float32), expected, atol=1e-6)
    assert two.metric("m3_texts_total") == before + 20
    (line,) = events(two, "metrics_port", 1)
    assert f"\nm3_texts_total {before + 20}\n" in httpx2.get(line["url"], trust_env=False).text


def test_a_worker_that_is_killed_is_replaced(two):
    started = events(two, "serving", 2)
    victim = started[0]["pid"]
    os.kill(victim, signal.SIGKILL)
    died = events(two, "worker_died", 1)[0]
    assert (died["worker"], died["exit"]) == (victim, -signal.SIGKILL)
    replaced = events(two, "serving", 3)[-1]["pid"]
    assert replaced not in {line["pid"] for line in started}
    assert all(ask(two, "still here").status_code == 200 for _ in range(10))


def test_a_bundle_that_cannot_be_opened_ends_all(tiny_bundle: Path):
    words = [str(tiny_bundle), "--port", "0", "--variant", "none", "--workers", "2"]
    command = [sys.executable, "-m", "m3_runtime", "serve", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "the bundle has no variant 'none'; it has: onnx-fp32" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("m3-runtime: a worker cannot start")


def test_workers_end_with_their_parent(tiny_bundle: Path, tmp_path: Path):
    with running(tiny_bundle, tmp_path, *WORDS) as server:
        workers = [line["pid"] for line in events(server, "serving", 2)]
        server.process.kill()
        server.process.wait(PATIENCE_S)
        wait_until(lambda: all(map(has_ended, workers)))
