"""Time to open, time to the first vector, resident memory, latency of a short query; each variant in a fresh process.

python benchmarks/start.py BUNDLE [--threads 2]
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from pathlib import Path

from m3_runtime import Bundle, M3Encoder

QUERY = "What is BGE M3? And what is it good for?"
RUNS = 30


def resident_mb() -> int:
    """Resident memory of this process now, in MB (Linux); its peak elsewhere."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


def measure(bundle: Path, variant: str, threads: int) -> None:
    """Measure one variant, in this process, all three heads."""
    start = time.perf_counter()
    with M3Encoder.open(bundle, variant=variant, threads=threads) as encoder:
        opened_s = time.perf_counter() - start
        tokens = encoder.encode([QUERY], return_sparse=True, return_colbert_vecs=True).token_counts[0]
        first_s, memory = time.perf_counter() - start, resident_mb()
        times = []
        for _ in range(RUNS):
            start = time.perf_counter()
            encoder.encode([QUERY], return_sparse=True, return_colbert_vecs=True)
            times.append(time.perf_counter() - start)
    p50_ms, best_ms = statistics.median(times) * 1e3, min(times) * 1e3
    print(
        f"{variant}: open {opened_s:.2f} s, first vector {first_s:.2f} s, resident {memory} MB, "
        f"{tokens}-token query p50 {p50_ms:.1f} ms, best {best_ms:.1f} ms",
        flush=True,
    )


def main() -> None:
    """Measure every variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    for variant in Bundle.open(args.bundle).manifest.variants:
        process = multiprocessing.get_context("spawn").Process(
            target=measure, args=(args.bundle, variant.name, args.threads)
        )
        process.start()
        process.join()


if __name__ == "__main__":
    main()
