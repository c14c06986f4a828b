"""Inputs for bulk jobs, and the command that runs one."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from commands import Done, run_main
from m3_runtime.cli import main

# The command with a rest after every file that it finishes: a signal comes before its end, however few rows it has.
SLOWED = """
import sys, time
from m3_runtime.cli import main
sys.addaudithook(lambda event, _: time.sleep(0.05) if event == "os.rename" else None)
sys.exit(main(sys.argv[1:]))
"""


class Work:
    """A folder with an input of numbered texts, and what a job made of it."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.folder, self.out, self._bundle = folder, folder / "out", bundle

    def write(self, lines: Sequence[object], name: str = "in.jsonl") -> Path:
        path = self.folder / name
        path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), encoding="utf-8")
        return path

    def numbered(self, rows: int, bad_every: int = 0) -> Path:
        """Texts t0, t1, …; every so-and-so-many-th is no text."""
        texts = [
            {
                "id": f"t{i}",
                "text": None if bad_every and i % bad_every == bad_every - 1 else f"text {i} " * (1 + i % 5),
            }
            for i in range(rows)
        ]
        return self.write(texts)

    def arguments(self, *more: object) -> list[str]:
        fixed = ["bulk", self._bundle, "--variant", "onnx-fp32", "--threads", 1, "-o", self.out, *more]
        return [str(word) for word in fixed]

    def command(self, *more: object) -> list[str]:
        return [sys.executable, "-m", "m3_runtime", *self.arguments(*more)]

    def run(self, *more: object) -> Done:
        """The whole job: here, or in a process of its own if it starts others, which belong to their parent."""
        if not {"--workers", "--ray-address"} & {*map(str, more)}:
            return run_main(main, *self.arguments(*more))
        done = subprocess.run(self.command(*more), capture_output=True, text=True, check=False, timeout=300)
        return Done(done.returncode, done.stdout, done.stderr)

    def started(self, *more: object) -> subprocess.Popen[str]:
        """A job under way, or ended early: some shards are done, and the others take a while."""
        command = [sys.executable, "-c", SLOWED, *self.arguments(*more)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and len(list(self.out.glob("vectors/*"))) < 4:
            time.sleep(0.01)
        return process

    def ids(self) -> list[str]:
        """Of all shards, in order of their names."""
        parts = sorted((self.out / "vectors").glob("*"))
        return [name for part in parts for name in pq.read_table(part, columns=["id"]).column("id").to_pylist()]

    def rejected(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in (self.out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def work(tmp_path: Path, tiny_bundle: Path) -> Work:
    return Work(tmp_path, tiny_bundle)
