"""Killed with SIGKILL, resumed, compared: no row is lost or doubled."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset
import pytest

from patience import PATIENCE_S

# Ends the process at its n-th touch of the job's folder: files opened, renamed and removed, and both sides of a flush.
KILLER = """
import os, signal, sys

def kill_at(touch, out):
    left = [touch]
    def touched():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def hook(event, arguments):
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and out in str(arguments[0]):
            touched()
    def fsync(handle):  # what a killed process has written stays, flushed or not
        touched()
        touched()
    sys.addaudithook(hook)
    os.fsync = fsync
"""

# Real sources, folder and journal; what would encode writes ids. Each try is a fork, so every point can be tried.
EVERY_POINT = (
    KILLER
    + """
import json, shutil
from contextlib import nullcontext
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq  # imported once, not in every fork
from m3_runtime.bulk.job import BulkJob, VectorSettings
from m3_runtime.bulk.journal import ShardCounts
from m3_runtime.bulk.run import run_job
from m3_runtime.bulk.shards import ShardDraft
from m3_runtime.bulk.sources import find_sources
from m3_runtime.bundle.manifest import Head
from m3_runtime.io.atomic import new_file
from m3_runtime.io.progress import Progress
from m3_runtime.io.rows import Columns

source, out = sys.argv[1], Path(sys.argv[2])
job = BulkJob("m3-1", "v", VectorSettings((Head.DENSE,), 512), 3, Columns(), find_sources([source]).files)

def encode(shards, partial):
    for shard in shards:
        path = partial / str(shard.index)
        with new_file(path) as file:
            pq.write_table(pa.table({"id": [row.id for row in shard.rows]}), file)
        counts = {"index": shard.index, "rows": len(shard.rows), "rejected": len(shard.bad), "tokens": 1}
        yield ShardDraft(ShardCounts(**counts, truncated=0, input_bytes=shard.input_bytes), path, shard.bad)

def attempt(touch):
    child = os.fork()
    if child == 0:
        try:
            if touch:
                kill_at(touch, str(out))
            run_job(job, out, lambda: nullcontext(encode), Progress(quiet=True), strict=False)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def made():
    parts = sorted((out / "vectors").iterdir())
    ids = [name for part in parts for name in pq.read_table(part, use_threads=False).column("id").to_pylist()]
    places = [json.loads(line)["place"] for line in (out / "rejected.jsonl").read_text().splitlines()]
    return ids, places, sorted(path.name for path in out.iterdir())

assert attempt(0) == 0
expected = made()
touch, killed_again, code = 0, 0, -signal.SIGKILL
while code == -signal.SIGKILL:
    touch += 1
    shutil.rmtree(out)
    code = attempt(touch)
    again = attempt(1 + touch * 7 % 31)
    killed_again += again == -signal.SIGKILL
    assert again in (0, -signal.SIGKILL), again
    assert attempt(0) == 0
    assert made() == expected, (touch, made(), expected)
assert code == 0, code
print(json.dumps([touch - 1, killed_again, *expected]))
"""
)

# The whole command, killed at the given points one after the other; prints how each try ended.
COMMAND = (
    KILLER
    + """
import json
import pyarrow.parquet, m3_runtime.bulk.run  # imported once, not in every fork
from m3_runtime.cli import main

ends = []
for touch in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        kill_at(touch, sys.argv[2])
        os._exit(main(sys.argv[3:]))
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ends))
"""
)


def test_killed_at_every_point_twice_over(work):
    source = work.numbered(11, bad_every=4)
    words = [sys.executable, "-c", EVERY_POINT, str(source), str(work.out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    points, killed_again, ids, places, names = json.loads(done.stdout)
    assert ids == [f"t{i}" for i in range(11) if i % 4 != 3]
    assert places == [f"{source}:{i + 1}" for i in (3, 7)]
    assert names == ["journal.jsonl", "rejected.jsonl", "vectors"]
    assert points > 4 * 8  # four shards, each with more points than that
    assert killed_again > points // 2


def undisturbed(work, source: Path, *more: object) -> pyarrow.Table:
    out, work.out = work.out, work.folder / "undisturbed"
    done = work.run(source, *more)
    assert done.returncode == 0, done.stderr
    table = pyarrow.dataset.dataset(work.out / "vectors").to_table()
    work.out = out
    return table


MORE = ("--heads", "dense,sparse,colbert", "--shard-rows", 5)


def test_the_command_killed_at_random_points(work):
    source = work.numbered(40, bad_every=9)
    chance = random.Random(20261126)
    touches = [chance.randint(5, 40) for _ in range(6)]
    words = [sys.executable, "-c", COMMAND, json.dumps(touches), str(work.out), *work.arguments(source, *MORE)]
    killed = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    ends = json.loads(killed.stdout.splitlines()[-1])
    assert {*ends} <= {0, -signal.SIGKILL}
    assert ends.count(-signal.SIGKILL) >= 3
    done = work.run(source, *MORE)
    assert done.returncode == 0, done.stderr
    assert work.ids() == [f"t{i}" for i in range(40) if i % 9 != 8]
    assert [row["place"] for row in work.rejected()] == [f"{source}:{i + 1}" for i in range(40) if i % 9 == 8]
    assert pyarrow.dataset.dataset(work.out / "vectors").to_table().equals(undisturbed(work, source, *MORE))


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_from_outside_while_it_encodes(work, stop):
    source = work.numbered(300)
    more = ("--shard-rows", 5)
    with work.started(source, *more, "--quiet") as process:
        process.send_signal(stop)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == (130 if stop is signal.SIGINT else -stop), said
    before = work.ids()
    assert 10 <= len(before) < 300
    done = work.run(source, *more)
    assert done.returncode == 0, done.stderr
    assert "shards were done already" in done.stderr
    assert work.ids() == [f"t{i}" for i in range(300)]
