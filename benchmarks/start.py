"""Time to open, time to the first vector, resident memory, latency of a short query; each variant in a fresh process.

    python benchmarks/start.py BUNDLE [--threads 2] [--variants onnx-int8] [--low-memory] [--cache-dir DIR] [--maps]
                               [--rounds 3]

Times are the best of the rounds, memory is that of the last. The clock starts when a process has imported m3_runtime.
"""

import argparse
import multiprocessing
import multiprocessing.connection
import re
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from m3_runtime import Bundle, M3Encoder

QUERY = "What is BGE M3? And what is it good for?"
RUNS = 30
MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)")  # a first line in /proc/self/smaps


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    bundle: Path
    variant: str
    threads: int
    low_memory: bool
    cache_dir: Path | None


@dataclass(frozen=True)
class Found:
    """What it found. Memory in MB: after the first vector, its peak by then, and after a text of 512 tokens."""

    open_s: float
    first_s: float
    p50_ms: float
    tokens: int
    memory: dict[str, int]
    peak: int
    later: dict[str, int]
    mappings: dict[str, int]


def status_mb(*keys: str) -> dict[str, int]:
    """Fields of /proc/self/status (Linux)."""
    text = Path("/proc/self/status").read_text()
    return {key: int(re.search(rf"{key}:\s+(\d+)", text)[1]) // 1024 for key in keys}  # type: ignore[index]


def mappings_mb() -> dict[str, int]:
    """Resident memory of each mapped file, of the heap and of the rest, largest first."""
    sizes: Counter[str] = Counter()
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := MAPPING.match(line):
            name = Path(match[1]).name or "anonymous"
        elif line.startswith("Rss:"):
            sizes[name] += int(line.split()[1])
    return {name: kib // 1024 for name, kib in sizes.most_common(8)}


def measure(job: Job, answer: multiprocessing.connection.Connection) -> None:
    """Measure one variant, in this process, all three heads."""
    start = time.perf_counter()
    with M3Encoder.open(
        job.bundle, variant=job.variant, threads=job.threads, low_memory=job.low_memory, cache_dir=job.cache_dir
    ) as encoder:
        opened_s = time.perf_counter() - start
        tokens = encoder.encode([QUERY], return_sparse=True, return_colbert_vecs=True).token_counts[0]
        first_s = time.perf_counter() - start
        memory, peak, mappings = status_mb("VmRSS", "RssAnon", "RssFile"), status_mb("VmHWM")["VmHWM"], mappings_mb()
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            encoder.encode([QUERY], return_sparse=True, return_colbert_vecs=True)
            times.append(time.perf_counter() - start)
        encoder.encode(["word " * 600], return_sparse=True, return_colbert_vecs=True)
        later = status_mb("VmRSS", "RssAnon", "RssFile")
    p50_ms = statistics.median(times) * 1e3
    answer.send(Found(opened_s, first_s, p50_ms, int(tokens), memory, peak, later, mappings))


def in_its_own_process(job: Job) -> Found:
    """Run `measure` in a fresh process."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(job, there))
    process.start()
    there.close()
    found: Found = here.recv()
    process.join()
    return found


def report(variant: str, found: list[Found], *, with_maps: bool) -> None:
    """Print one variant's lines."""
    last = found[-1]
    open_s, first_s, p50_ms = (min(getattr(one, name) for one in found) for name in ("open_s", "first_s", "p50_ms"))
    memory, later = (
        f"{m['VmRSS']} MB ({m['RssAnon']} anonymous, {m['RssFile']} of files)" for m in (last.memory, last.later)
    )
    print(
        f"{variant}: open {open_s:.2f} s, first vector {first_s:.2f} s, {last.tokens}-token query p50 {p50_ms:.1f} ms; "
        f"resident {memory}, peak {last.peak} MB, after 512 tokens {later}",
        flush=True,
    )
    for name, size in last.mappings.items() if with_maps else ():
        print(f"    {size:5} MB  {name}")


def main() -> None:
    """Measure every variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--variants", help="comma-separated (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--low-memory", action="store_true")
    parser.add_argument("--cache-dir", type=Path)
    parser.add_argument("--maps", action="store_true", help="show where the memory is")
    args = parser.parse_args()
    names = args.variants.split(",") if args.variants else [v.name for v in Bundle.open(args.bundle).manifest.variants]
    for name in names:
        job = Job(args.bundle, name, args.threads, args.low_memory, args.cache_dir)
        report(name, [in_its_own_process(job) for _ in range(args.rounds)], with_maps=args.maps)


if __name__ == "__main__":
    main()
