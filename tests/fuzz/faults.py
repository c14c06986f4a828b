"""Kills, full disks, stops and clock jumps: no half bundle, no lost or doubled row, no wrong answer. `make faults`.

    python tests/fuzz/faults.py BUNDLE CHECKPOINT --kills 50 --full 10 --stop-s 60 --clock

Exports CHECKPOINT (by the plan of BUNDLE, which it came from), encodes a corpus with BUNDLE, and serves it. Needs
Linux; a disk is filled as a small tmpfs where mounting is allowed, else by a limit on the size of files.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import pyarrow.parquet as pq

import m3_runtime.bulk.run  # with all that a job needs, once: tries are forks
import m3_runtime.cli
from m3_runtime import Bundle

ROWS, LONG_ROWS, BAD_EVERY, SHARD_ROWS = 60, 1500, 9, 5
TEXTS = [f"text {number} " * (1 + number % 7) for number in range(24)]
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
FSIZE = resource.RLIMIT_FSIZE
Prepare = Callable[[], object]


@dataclass(frozen=True)
class Job:
    """A command, where it writes, and what says that a finished result is right."""

    name: str
    main: Callable[[list[str]], int]
    words: tuple[str, ...]
    out: Path
    check: Callable[[Path], None]

    @property
    def log(self) -> Path:
        """What its last attempt said; not on the disk that is filled."""
        return self.out.parents[1] / f"{self.name}.log"

    def attempt(self, prepare: Prepare = lambda: None, killed_after_s: float | None = None) -> int:
        """Run it in a fork; its exit code, or minus the signal that ended it."""
        child = os.fork()
        if child == 0:
            code = 99
            try:
                with self.log.open("w") as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                    prepare()
                    code = self.main([*self.words])
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if killed_after_s is not None:
            time.sleep(killed_after_s)
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def must(self, code: int, found: int) -> None:
        assert found == code, f"{self.name} ended with {found}, not {code}: {self.log.read_text()[-2000:]}"


def touches(out: Path, at: int, counts: Path | None = None) -> Prepare:
    """Die at the n-th touch of what lies beside `out`: files opened, renamed, removed, flushed; 0 only counts."""
    seen = [0]

    def touched() -> None:
        seen[0] += 1
        if seen[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if counts is not None:
            counts.write_bytes(b"%d" % seen[0])

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        is_change = event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
        if is_change and str(out.parent) in str(arguments[0]):
            touched()

    def prepare() -> None:
        flush = os.fsync

        def fsync(handle: int) -> None:
            touched()
            flush(handle)
            touched()

        os.fsync = fsync
        sys.addaudithook(hook)

    return prepare


def kill(job: Job, tries: int, draw: random.Random, *, is_resumed: bool) -> None:
    """Kill it at random touches, and one in five at a random time; what is there is whole, and a last run ends well."""
    counts = job.log.with_suffix(".touches")
    start_s = time.monotonic()
    job.must(0, job.attempt(touches(job.out, 0, counts)))
    took_s, points = time.monotonic() - start_s, int(counts.read_bytes())
    job.check(job.out)
    older = Path(shutil.copytree(job.out, job.log.with_suffix(".older")))
    survived = aside = 0
    for number in range(tries):
        shutil.rmtree(job.out, ignore_errors=True)
        if number % 2 and not is_resumed:
            shutil.copytree(older, job.out)
        if number % 5 == 4:
            code = job.attempt(killed_after_s=draw.uniform(0, took_s))
        else:
            code = job.attempt(touches(job.out, draw.randint(1, points)))
        assert code in (0, -signal.SIGKILL), job.must(0, code)
        survived += code == 0
        if is_resumed:  # and may be killed again
            assert job.attempt(touches(job.out, draw.randint(1, points))) in (0, -signal.SIGKILL)
            job.must(0, job.attempt())
            job.check(job.out)
        elif job.out.exists():
            job.check(job.out)
        elif number % 2:  # killed between two renames: the older one is whole, under its other name
            (kept,) = job.out.parent.glob(f".{job.out.name}.replaced-*")
            job.check(kept)
            aside += 1
    job.must(0, job.attempt())
    job.check(job.out)
    left = {path.name for path in job.out.parent.glob(f".{job.out.name}.*")}
    assert not left, left
    print(
        f"{job.name}: {tries} kills at {points} touches, {survived} came too late, {aside} between renames", flush=True
    )


@contextmanager
def mounted(folder: Path, size_bytes: int) -> Iterator[Prepare]:
    """A disk of so many bytes at `folder`; yields what gives it more."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(folder)], check=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=90%", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(make: Callable[[Path], Job], made: Path, tries: int, *, is_mounting: bool) -> None:
    """Give it too little room, in so many steps; nothing half is left, and with room it ends well.

    `made` is what it makes. Without mounting, no file may be larger than a part of the largest of those.
    """
    sizes = [path.stat().st_size for path in made.rglob("*") if path.is_file()]
    most, codes = sum(sizes) if is_mounting else max(sizes), []
    for number in range(tries):
        room, size_bytes = Path(tempfile.mkdtemp(dir=made.parents[1])), most * (number + 1) // (tries + 2)
        job, limit = make(room), (size_bytes, resource.RLIM_INFINITY)
        with mounted(room, max(4096, size_bytes)) if is_mounting else nullcontext() as make_room:
            codes.append(job.attempt((lambda: None) if is_mounting else partial(resource.setrlimit, FSIZE, limit)))
            assert codes[-1] in (0, 1), job.must(1, codes[-1])
            if job.name == "export" and codes[-1]:
                assert not list(room.iterdir()), list(room.iterdir())
            if make_room is not None:
                make_room()
            job.must(0, job.attempt())
            job.check(job.out)
    assert 1 in codes, "there was always room"
    print(f"{job.name}: {tries} disks, {codes.count(1)} of them too small", flush=True)


def stop(job: Job, seconds: float) -> None:
    """Stop it in the middle, for so long."""
    child = subprocess.Popen([sys.executable, "-m", "m3_runtime", *job.words], stderr=subprocess.PIPE, text=True)
    while child.poll() is None and not any(job.out.glob("vectors/*")):
        time.sleep(0.001)
    child.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    child.send_signal(signal.SIGCONT)
    _, said = child.communicate(timeout=600)
    assert child.returncode == 0, said
    job.check(job.out)
    print(f"{job.name}: stopped for {seconds:g} s", flush=True)


@contextmanager
def served(bundle: Path, env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    words = [sys.executable, "-m", "m3_runtime", "serve", str(bundle), "--port", "0", "--threads", "1"]
    server = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
    assert server.stderr is not None
    try:
        url = next(json.loads(line)["url"] for line in server.stderr if '"serving"' in line)
        threading.Thread(target=server.stderr.read, daemon=True).start()
        yield server, url
    finally:
        server.terminate()
        server.wait(60)


def ask(url: str, disturb: Callable[[], object], clients: int = 4) -> None:
    """Answers before, during and after a disturbance are the same."""

    def vectors(texts: Sequence[str]) -> list[object]:
        answer = httpx2.post(f"{url}/embed", json={"inputs": texts}, timeout=300, trust_env=False)
        assert answer.status_code == 200, answer.text
        return [tuple(row) for row in answer.json()]

    expected, wrong, is_over = vectors(TEXTS), [], threading.Event()

    def client(number: int) -> None:
        while not is_over.is_set():
            try:
                if vectors(TEXTS[number::clients]) != expected[number::clients]:
                    wrong.append(f"client {number}: another answer")
            except Exception as error:
                wrong.append(f"client {number}: {error!r}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    disturb()
    is_over.set()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:3]
    assert vectors(TEXTS) == expected


def stop_server(bundle: Path, seconds: float) -> None:
    """Stop a server among its requests."""
    with served(bundle, {}) as (server, url):

        def disturb() -> None:
            time.sleep(0.2)
            server.send_signal(signal.SIGSTOP)
            time.sleep(seconds)
            server.send_signal(signal.SIGCONT)
            time.sleep(0.2)

        ask(url, disturb)
    print(f"serve: stopped for {seconds:g} s", flush=True)


def jump(job: Job, bundle: Path, folder: Path) -> None:
    """Set the clock two days forth, four back, and a year forth, under a job and under a server."""
    assert FAKETIME.is_file(), "libfaketime is missing, so no clock can jump; as root: apt-get install libfaketime"
    clock = folder / "now"
    clock.write_text("+0")
    env = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"}
    env["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"  # as the system's own clocks behave

    def jumps() -> None:
        for said in ("+2d", "-2d", "+365d", "+0"):
            pending = clock.with_name("clock.new")
            pending.write_text(said)
            pending.replace(clock)
            time.sleep(0.3)

    with served(bundle, env) as (_, url):
        ask(url, jumps)
    child = subprocess.Popen([sys.executable, "-m", "m3_runtime", *job.words], env={**os.environ, **env})
    while child.poll() is None:
        jumps()
    assert child.returncode == 0
    job.check(job.out)
    print("bulk and serve: the clock jumped", flush=True)


def export_job(checkpoint: Path, bundle: Path, folder: Path) -> Job:
    """An export with --force, by the plan of a bundle that was made from the same checkpoint."""
    import m3_export.cli
    import m3_export.pipeline  # once, as above

    expected: dict[str, bytes] = {}

    def check(out: Path) -> None:
        Bundle.open(out, verify="full")
        made = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        assert made.keys() == (expected or made).keys(), made.keys() ^ expected.keys()
        expected.update(expected or made)

    words = (str(checkpoint), str(folder / "bundle"), "--plan", str(bundle / "plan.json"), "--force", "--quiet")
    return Job("export", m3_export.cli.main, words, folder / "bundle", check)


def bulk_job(bundle: Path, folder: Path, source: Path, rows: int) -> Job:
    """A corpus in many shards, every so-and-so-many-th row rejected."""
    bad = set(range(BAD_EVERY - 1, rows, BAD_EVERY))

    def check(out: Path) -> None:
        parts = sorted((out / "vectors").iterdir())
        ids = [name for part in parts for name in pq.read_table(part, use_threads=False).column("id").to_pylist()]
        assert ids == [f"t{number}" for number in range(rows) if number not in bad], ids
        places = [json.loads(line)["place"] for line in (out / "rejected.jsonl").read_text().splitlines()]
        assert places == [f"{source}:{number + 1}" for number in sorted(bad)], places

    words = ("bulk", str(bundle), str(source), "-o", str(folder / "rows"), "--threads", "1", "--quiet")
    more = ("--variant", "onnx-fp32", "--heads", "dense,sparse,colbert", "--shard-rows", str(SHARD_ROWS))
    return Job("bulk", m3_runtime.cli.main, (*words, *more, "--max-rejected", "50%"), folder / "rows", check)


def written(folder: Path, rows: int) -> Path:
    """A corpus."""
    lines = [
        {"id": f"t{n}", "text": None if n % BAD_EVERY == BAD_EVERY - 1 else f"text {n} " * (1 + n % 5)}
        for n in range(rows)
    ]
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--jobs", default="export,bulk,serve", help="which of them (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=50, help="of the export, and of the job")
    parser.add_argument("--full", type=int, default=10, help="disks of different sizes, for each")
    parser.add_argument("--mount", action="store_true", help="real disks (as root), not only limits on files")
    parser.add_argument("--stop-s", type=float, default=60.0, help="how long a job and a server are stopped")
    parser.add_argument("--clock", action="store_true", help="let the clock jump; needs Debian's libfaketime")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    args = parser.parse_args()
    bundle, checkpoint, draw = args.bundle.absolute(), args.checkpoint.absolute(), random.Random(args.seed)
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for made in ("kill", "stop", "clock", "long"):
            (folder / made).mkdir()
        source, long_source = written(folder, ROWS), written(folder / "long", LONG_ROWS)
        makers = {
            "export": lambda room: export_job(checkpoint, bundle, room),
            "bulk": lambda room: bulk_job(bundle, room, source, ROWS),
        }
        for what in makers.keys() & set(args.jobs.split(",")):
            job = makers[what](folder / "kill")
            kill(job, args.kills, draw, is_resumed=what == "bulk")
            if args.full:
                fill(makers[what], job.out, args.full, is_mounting=args.mount)
        if "bulk" in args.jobs:
            stop(bulk_job(bundle, folder / "stop", long_source, LONG_ROWS), args.stop_s)
        if "serve" in args.jobs:
            stop_server(bundle, args.stop_s)
        if args.clock:
            jump(bulk_job(bundle, folder / "clock", long_source, LONG_ROWS), bundle, folder)


if __name__ == "__main__":
    main()
