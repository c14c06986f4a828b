"""How processes, threads and streams share a machine: throughput of several layouts, in turns, in one run.

    python benchmarks/layouts.py BUNDLE [--variant openvino-int8] [--layouts 1x1 2x1 1x2 1x2x2] [--shapes 1x16 1x128]
                                 [--rounds 5] [--seconds 2] [--against ENABLE_CPU_PINNING=YES]

A layout is processes × threads of each, or processes × threads × streams: so many runs at a time share the threads of
their process. Every stream runs one batch of noise again and again; the tokens per second of all of them are added up.
Layouts take turns (A B C A B C …), the others' processes sleep meanwhile. With --against every layout is there twice,
the second time with other properties. Prints tokens per second, best and median, each median ÷ the first one's, and
how many different results there were, to the bit.
"""

import argparse
import hashlib
import multiprocessing
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from m3_runtime.bundle.manifest import Head
from m3_runtime.bundle.reader import Bundle
from m3_runtime.cpu import cpu_info
from m3_runtime.engines import Opening, RawOutputs, TokenBatch
from m3_runtime.engines.select import choose_variant, open_engine

BETWEEN_S = 0.3
SPAWN = multiprocessing.get_context("spawn")
Shape = tuple[int, int]  # texts, tokens


@dataclass(frozen=True)
class Job:
    """What one process opens."""

    bundle: Path
    variant: str
    threads: int
    streams: int
    properties: tuple[tuple[str, str], ...]


class Layout:
    """Processes that run the same at the same time."""

    def __init__(self, name: str, job: Job, processes: int) -> None:
        self.name = name
        self._lines: list[Connection] = []
        for _ in range(processes):
            ours, theirs = SPAWN.Pipe()
            SPAWN.Process(target=_work, args=(job, theirs), daemon=True).start()
            self._lines.append(ours)

    def run(self, shape: Shape, seconds: float) -> tuple[float, set[str]]:
        """Tokens per second of all processes together, and digests of what they found."""
        for line in self._lines:
            line.send((shape, seconds))
        found = [line.recv() for line in self._lines]
        return sum(speed for speed, _ in found), {digest for _, digest in found}


def _work(job: Job, line: Connection) -> None:
    bundle = Bundle.open(job.bundle)
    variant = bundle.variant(job.variant)
    variant = replace(variant, properties={**variant.properties, **dict(job.properties)})
    engine = open_engine(bundle, variant, job.threads, Opening(streams=job.streams))
    with ThreadPoolExecutor(job.streams) as callers, suppress(EOFError):
        while True:
            shape, seconds = line.recv()
            ids = np.random.default_rng(0).integers(5, bundle.manifest.geometry.vocab_size - 2, shape)
            batch = TokenBatch(ids, np.ones_like(ids))

            def tokens_per_s(batch: TokenBatch = batch, seconds: float = seconds) -> float:
                runs, start_s = 0, time.perf_counter()
                while (took_s := time.perf_counter() - start_s) < seconds:
                    engine.run(batch, list(Head))
                    runs += 1
                return runs * batch.input_ids.size / took_s

            calls = [callers.submit(tokens_per_s) for _ in range(job.streams)]
            speed = sum(call.result() for call in calls)
            line.send((speed, _digest(engine.run(batch, list(Head)))))


def _digest(raw: RawOutputs) -> str:
    arrays = (raw.dense_vecs, raw.token_weights, raw.colbert_vecs)
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays if array is not None)).hexdigest()


def measure(layouts: list[Layout], shape: Shape, rounds: int, seconds: float) -> list[str]:
    """A table of one shape, after a first round that is discarded."""
    found: dict[str, list[float]] = {layout.name: [] for layout in layouts}
    digests: set[str] = set()
    for number in range(rounds + 1):
        for layout in layouts:
            time.sleep(BETWEEN_S)
            speed, ours = layout.run(shape, seconds)
            digests |= ours
            if number:
                found[layout.name].append(speed)
    first = statistics.median(found[layouts[0].name])
    lines = [f"| {shape[0]} x {shape[1]} | tokens/s best (median) | ÷ the first |", "|---|---|---|"]
    for name, speeds in found.items():
        middle = statistics.median(speeds)
        lines.append(f"| {name} | {max(speeds):.0f} ({middle:.0f}) | {middle / first:.2f} |")
    return [*lines, "", f"different results: {len(digests)}", ""]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", default="auto")
    parser.add_argument("--layouts", nargs="+", default=["1x1", "2x1", "1x2", "1x2x2"])
    parser.add_argument("--shapes", nargs="+", default=["1x16", "1x128", "16x128"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--against", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    variant = choose_variant(Bundle.open(args.bundle), args.variant)
    others = tuple(tuple(item.split("=", 1)) for item in args.against)
    layouts = []
    for properties in ((), others) if others else ((),):
        for name in args.layouts:
            processes, threads, streams = map(int, [*name.split("x"), 1][:3])
            job = Job(args.bundle, variant.name, threads, streams, properties)
            layouts.append(Layout(" ".join([name, *args.against] if properties else [name]), job, processes))
    print(f"{variant.name}, {cpu_info().name}; processes x threads (x streams)\n")
    for shape in args.shapes:
        texts, tokens = map(int, shape.split("x"))
        print("\n".join(measure(layouts, (texts, tokens), args.rounds, args.seconds)), flush=True)


if __name__ == "__main__":
    main()
