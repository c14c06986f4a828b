"""Several processes: the same shards, the same safety."""

import os
import re
import signal
from pathlib import Path

import pyarrow.dataset
import pytest

from m3_runtime.bulk.job import BulkJob, VectorSettings
from m3_runtime.bulk.shards import BulkLimits, Shard
from m3_runtime.bulk.workers import encode_in_processes
from m3_runtime.bundle.manifest import Head
from m3_runtime.errors import BulkError
from m3_runtime.io.rows import Columns, Row
from patience import has_ended, wait_until

WORKERS = ("--shard-rows", 5, "--workers", 2)


def children_of(parent: int) -> dict[int, str]:
    """Processes that were started by `parent` and encode: number and command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            started_by = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has gone
            continue
        if started_by == parent and "spawn_main" in words:
            found[int(folder.name)] = words
    return found


def wait_until_gone(numbers: list[int]) -> None:
    wait_until(lambda: all(map(has_ended, numbers)), lambda: "a worker outlives its parent")


def test_two_workers_write_what_one_process_writes(work):
    source, more = work.numbered(60, bad_every=11), ("--heads", "dense,sparse,colbert")
    done = work.run(source, *more, *WORKERS)
    assert done.returncode == 0, done.stderr
    assert "tokens/s [" in done.stderr
    ids, rejected = work.ids(), work.rejected()
    found = pyarrow.dataset.dataset(work.out / "vectors").to_table()
    work.out = work.folder / "alone"
    assert work.run(source, *more, "--shard-rows", 5).returncode == 0
    assert found.equals(pyarrow.dataset.dataset(work.out / "vectors").to_table())
    assert ids == work.ids() == [f"t{i}" for i in range(60) if i % 11 != 10]
    assert sorted(row["place"] for row in rejected) == sorted(row["place"] for row in work.rejected())


def test_streams_write_what_one_stream_writes(work):
    source, more = work.numbered(60, bad_every=11), ("--heads", "dense,sparse,colbert", "--threads", 2)
    tables = []
    for streams in (1, 2, "auto"):
        work.out = work.folder / f"out{streams}"
        assert work.run(source, *more, "--shard-rows", 20, "--streams", streams).returncode == 0
        tables.append(pyarrow.dataset.dataset(work.out / "vectors").to_table())
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    work.out = work.folder / "refused"
    refused = work.run(source, *more, "--shard-rows", 20, "--streams", 3)
    assert refused.returncode == 2
    assert "streams must be from 1 to the number of threads, which is 2, got 3" in refused.stderr


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_the_parent_is_stopped_and_its_workers_go(work, stop):
    source = work.numbered(800)
    with work.started(source, *WORKERS, "--quiet") as process:
        workers = list(children_of(process.pid))
        assert len(workers) == 2
        process.send_signal(stop)
        process.communicate(timeout=300)
    wait_until_gone(workers)
    assert process.returncode == (130 if stop is signal.SIGINT else -stop)
    assert 20 <= len(work.ids()) < 800
    done = work.run(source, *WORKERS)
    assert done.returncode == 0, done.stderr
    assert work.ids() == [f"t{i}" for i in range(800)]


def test_a_worker_is_killed_and_that_is_said(work):
    source = work.numbered(800)
    with work.started(source, *WORKERS, "--quiet") as process:
        workers = list(children_of(process.pid))
        os.kill(workers[0], signal.SIGKILL)
        _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "a worker ended without reporting an error (exit code -9; -9 mostly means out of memory); finished" in said
    assert "Traceback" not in said
    wait_until_gone(workers)
    done = work.run(source, "--shard-rows", 5)  # the number of workers may change
    assert done.returncode == 0, done.stderr
    assert work.ids() == [f"t{i}" for i in range(800)]


def test_what_fails_in_a_worker_is_said_as_it_is_here(work):
    source = work.numbered(10)
    (work.folder / "cache").write_text("not a folder")
    alone = work.run(source, "--cache-dir", work.folder / "cache", "--variant", "openvino-int8")
    work.out = work.folder / "two"
    done = work.run(source, "--cache-dir", work.folder / "cache", "--variant", "openvino-int8", *WORKERS)
    assert done.returncode == alone.returncode == 2
    assert done.stderr.splitlines()[-1] == alone.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_bad_row_stops_strict_workers(work):
    source = work.numbered(100, bad_every=40)
    done = work.run(source, *WORKERS, "--strict")
    assert done.returncode == 2
    assert f"{source}:40: the text must be a str" in done.stderr
    assert set(work.ids()) <= {f"t{i}" for i in range(35)}
    assert work.run(source, *WORKERS).returncode == 0
    assert work.ids() == [f"t{i}" for i in range(100) if i % 40 != 39]


def no_memory() -> None:
    raise MemoryError(f"no room on CPUs {sorted(os.sched_getaffinity(0))}")


@pytest.mark.parametrize("count", [0, 1])
def test_an_error_that_is_none_of_ours_is_named(work, count):
    job = BulkJob("m3-1", "v", VectorSettings((Head.DENSE,), 512), 3, Columns(), ())
    shard = Shard(0, (Row("a", "a text", "a:1"),), (), 1)
    ours = sorted(os.sched_getaffinity(0))
    bound = tuple(ours[-count:]) if count else ()
    reason = re.escape(f"a worker failed (MemoryError: no room on CPUs {list(bound) or ours}); finished shards")
    with (
        encode_in_processes(no_memory, [bound], job, BulkLimits()) as encode,
        pytest.raises(BulkError, match=reason),
    ):
        list(encode(iter([shard]), work.folder))
