"""Batches of one length against batches of 32 padded neighbours, in turns, on one variant.

    python benchmarks/batching.py BUNDLE [--variant onnx-int8] [--threads 2] [--rounds 3]

Ids are noise; lengths are drawn at random. Prints tokens per second, real tokens only, best of the rounds.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_runtime.batching import pad_batch, plan_batches
from m3_runtime.bundle import Bundle
from m3_runtime.cpu import cpu_info, default_threads
from m3_runtime.engines.select import choose_variant, open_engine
from m3_runtime.manifest import Head

SCENARIOS = {"100 queries of 5 to 25 tokens": (100, 5, 25), "60 texts of 5 to 300 tokens": (60, 5, 300)}
NEIGHBOURS = 32
Plan = Callable[[NDArray[np.int64]], list[NDArray[np.int64]]]


def of_one_length(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """What the runtime does."""
    return list(plan_batches(lengths, 16384, 256))


def padded_neighbours(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Sorted by length, so many at a time."""
    order = np.argsort(-lengths, kind="stable")
    return [order[i : i + NEIGHBOURS] for i in range(0, order.size, NEIGHBOURS)]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", default="auto")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    variant = choose_variant(bundle, args.variant)
    engine = open_engine(bundle, variant, args.threads)
    rng = np.random.default_rng(0)
    print(f"{bundle.manifest.source.name}, {variant.name}, {cpu_info().name}, {args.threads} threads\n")
    print("| texts | one length, tokens/s | padded, tokens/s | ratio |\n|---|---|---|---|")
    for name, (count, shortest, longest) in SCENARIOS.items():
        lengths = rng.integers(shortest, longest + 1, count)
        ids = [rng.integers(5, bundle.manifest.geometry.vocab_size - 2, n).astype(np.int32) for n in lengths]
        plans: tuple[Plan, Plan] = (of_one_length, padded_neighbours)
        best = [np.inf, np.inf]
        for _ in range(args.rounds):
            for which, plan in enumerate(plans):
                start = time.perf_counter()
                for batch in plan(lengths):
                    engine.run(pad_batch([ids[i] for i in batch], bundle.manifest.tokenizer.pad_id), list(Head))
                best[which] = min(best[which], time.perf_counter() - start)
        rates = [lengths.sum() / seconds for seconds in best]
        print(f"| {name} | {rates[0]:.0f} | {rates[1]:.0f} | {rates[0] / rates[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
