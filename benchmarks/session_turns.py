"""ONNX Runtime sessions that take turns in one process: speed in parts of the first one's, and peak memory.

Contenders run one after the other, round after round, every other round in reverse order, so that a machine that slows
down slows all of them. What counts is the fastest run of each: others on the machine only ever add time. The first
contender is entered twice: what the two differ by is noise.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from m3_runtime.bundle.manifest import Head

Feed = dict[str, np.ndarray]
Shape = tuple[int, int]  # texts, tokens

AFTER_SPINNING_S = 0.2  # until a contender's threads have stopped spinning
LEAST_ROUNDS = 4
SPINNING = "session.intra_op.allow_spinning"
ALL_HEADS = tuple(head.output_name for head in Head)
NOISE_IDS = 200  # ids are below it: any word table has so many


@dataclass(frozen=True, eq=False)
class Contender:
    """A graph in a session, and what it is asked for."""

    name: str
    graph: Path
    config: Mapping[str, str]
    level: str = "ORT_ENABLE_ALL"
    outputs: tuple[str, ...] = ALL_HEADS
    padded: bool = False
    feed: Mapping[str, Any] = field(default_factory=dict)

    def open(self, threads: int) -> Any:
        """Load the graph."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, self.level)
        for key, value in self.config.items():
            options.add_session_config_entry(key, value)
        return onnxruntime.InferenceSession(str(self.graph), options, providers=["CPUExecutionProvider"])

    def inputs(self, shape: Shape) -> Feed:
        """A batch of noise; one token of it is padding if `padded`."""
        ids = np.random.default_rng(0).integers(5, NOISE_IDS, shape)
        ids[:, 0], ids[:, -1] = 0, 2
        mask = np.ones_like(ids)
        if self.padded:
            ids[-1, -1], mask[-1, -1] = 1, 0
        return {"input_ids": ids, "attention_mask": mask, **self.feed}

    def ready(self, shape: Shape, threads: int) -> Callable[[], object]:
        """A function that runs the batch once."""
        session, inputs = self.open(threads), self.inputs(shape)
        return lambda: session.run(list(self.outputs), inputs)


@cache
def share_arena() -> None:
    """One arena for all sessions: if each of eight keeps the score matrix of 4096 tokens, the memory is full."""
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    where = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(where, None)


def measure(contenders: Sequence[Contender], shape: Shape, seconds: float, threads: int) -> dict[str, list[float]]:
    """Seconds of each run, by contender; so many rounds as fit into `seconds`, a first one is discarded."""
    runs = {contender: contender.ready(shape, threads) for contender in contenders}
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for run in runs.values():
        run()
    started, rounds = time.perf_counter(), 0
    while rounds < LEAST_ROUNDS or time.perf_counter() - started < seconds:
        for contender in list(runs)[:: -1 if rounds % 2 else 1]:
            start = time.perf_counter()
            runs[contender]()
            times[contender.name].append(time.perf_counter() - start)
            time.sleep(AFTER_SPINNING_S if contender.config.get(SPINNING) != "0" else 0)
        rounds += 1
    return times


def speed_table(
    contenders: Sequence[Contender], shapes: Sequence[Shape], seconds: float, threads: int, *, memory: bool
) -> list[str]:
    """Tokens per second of the first contender, times of the others in parts of its, and perhaps peak memory."""
    first, others = contenders[0], contenders[1:]
    field_of = [first, replace(first, name=f"{first.name}, once more"), *others]
    cells: dict[str, list[str]] = {contender.name: [] for contender in field_of}
    for shape in shapes:
        fastest = {name: min(found) for name, found in measure(field_of, shape, seconds, threads).items()}
        cells[first.name].append(f"{shape[0] * shape[1] / fastest[first.name]:.0f} tokens/s")
        for contender in field_of[1:]:
            cells[contender.name].append(f"{fastest[contender.name] / fastest[first.name]:.2f}")
    heads = ["time ÷ time of the first", *(f"{texts} × {tokens}" for texts, tokens in shapes)]
    if memory:
        heads.append(f"peak at {heads[-1]}, MB")
        for contender in field_of:
            cells[contender.name].append(f"{peak_mb(contender, shapes[-1], threads)}")
    return markdown(heads, cells)


def markdown(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    """A table, the name of each row first."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()), ""]


def peak_mb(contender: Contender, shape: Shape, threads: int) -> int:
    """Peak memory of opening and two runs, over what a fresh process had before (Linux).

    Raises:
        ValueError: the contender is fed something of its own, which the process is not told.
    """
    if contender.feed:
        raise ValueError(f"{contender.name}: no memory is measured of contenders with inputs of their own")
    told = json.dumps({**asdict(contender), "graph": str(contender.graph), "shape": shape, "threads": threads})
    words = [sys.executable, str(Path(__file__)), told]
    return int(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)  # noqa: S603 - this module


def _tell_peak(told: str) -> None:
    """What `peak_mb` starts."""
    import onnxruntime  # noqa: F401 - its own size is not the contender's

    asked = json.loads(told)
    shape, threads = asked.pop("shape"), asked.pop("threads")
    contender = Contender(**{**asked, "graph": Path(asked["graph"])})
    before = _status_mb("VmRSS")
    run = contender.ready(shape, threads)
    run()
    run()
    print(_status_mb("VmHWM") - before)


def _status_mb(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) // 1024


if __name__ == "__main__":
    _tell_peak(sys.argv[1])
