"""Batches of one length against batches of 32 padded neighbours, and a mixed corpus against texts of its mean length.

    python benchmarks/batching.py BUNDLE [--variant onnx-int8] [--threads 2] [--rounds 3] [--texts 60]

Ids are noise; lengths are drawn at random. Contenders take turns. Prints tokens per second, real tokens only, best of
the rounds, then what one text of each of some lengths gets: its first run, when its shape is new to the engine, and its
best.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_runtime.batching import pad_batch, plan_batches
from m3_runtime.bundle import Bundle
from m3_runtime.cpu import cpu_info, default_threads
from m3_runtime.engines import Engine
from m3_runtime.engines.select import choose_variant, open_engine
from m3_runtime.manifest import Head

NEIGHBOURS = 32
LENGTHS = (8, 16, 32, 64, 128, 256, 512, 600)
Lengths = NDArray[np.int64]
Plan = Callable[[Lengths], list[NDArray[np.int64]]]


def of_one_length(lengths: Lengths) -> list[NDArray[np.int64]]:
    """What the runtime does."""
    return list(plan_batches(lengths, 16384, 256))


def padded_neighbours(lengths: Lengths) -> list[NDArray[np.int64]]:
    """Sorted by length, so many at a time."""
    order = np.argsort(-lengths, kind="stable")
    return [order[i : i + NEIGHBOURS] for i in range(0, order.size, NEIGHBOURS)]


def one_by_one(lengths: Lengths) -> list[NDArray[np.int64]]:
    """Every text alone."""
    return [np.array([i]) for i in range(lengths.size)]


class Bench:
    """An engine, and noise to feed it with."""

    def __init__(self, engine: Engine, vocab_size: int, pad_id: int) -> None:
        self._engine, self._pad_id = engine, pad_id
        self._noise = np.random.default_rng(0).integers(5, vocab_size - 2, 2**14).astype(np.int32)

    def seconds(self, lengths: Lengths, batches: Sequence[NDArray[np.int64]]) -> float:
        """Time of all batches."""
        start = time.perf_counter()
        for batch in batches:
            rows = [self._noise[: lengths[i]] for i in batch]
            self._engine.run(pad_batch(rows, self._pad_id), list(Head))
        return time.perf_counter() - start

    def rates(self, contenders: Sequence[tuple[Lengths, Plan]], rounds: int) -> list[float]:
        """Tokens per second of each contender, best of the rounds, in turns."""
        best = [np.inf] * len(contenders)
        for _ in range(rounds):
            for i, (lengths, plan) in enumerate(contenders):
                best[i] = min(best[i], self.seconds(lengths, plan(lengths)))
        return [float(lengths.sum()) / seconds for (lengths, _), seconds in zip(contenders, best, strict=True)]


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", default="auto")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=60)
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    variant, manifest = choose_variant(bundle, args.variant), bundle.manifest
    bench = Bench(open_engine(bundle, variant, args.threads), manifest.geometry.vocab_size, manifest.tokenizer.pad_id)
    longest = min(600, manifest.geometry.max_tokens)
    rng, count = np.random.default_rng(0), args.texts
    mixed = rng.integers(5, longest + 1, count)
    equal = np.full(count, round(mixed.mean()))
    short = rng.integers(5, 26, count)
    print(f"{manifest.source.name}, {variant.name}, {cpu_info().name}, {args.threads} threads\n")
    print("| texts | tokens/s | ÷ the first |\n|---|---|---|")
    rows: dict[str, tuple[Lengths, Plan]] = {
        f"{count} of {equal[0]} tokens, as the runtime does": (equal, of_one_length),
        "the same, one by one": (equal, one_by_one),
        f"{count} of 5 to {longest} tokens, as the runtime does": (mixed, of_one_length),
        "the same, padded neighbours": (mixed, padded_neighbours),
        f"{count} of 5 to 25 tokens, as the runtime does": (short, of_one_length),
        "the same, padded neighbours ": (short, padded_neighbours),
    }
    rates = bench.rates(list(rows.values()), args.rounds)
    for name, rate in zip(rows, rates, strict=True):
        print(f"| {name} | {rate:.0f} | {rate / rates[0]:.2f} |", flush=True)
    print("\n| one text of | first, ms | best, ms | tokens/s |\n|---|---|---|---|")
    for length in LENGTHS[: sum(length <= longest for length in LENGTHS)]:
        one = np.array([length])
        first, *more = (bench.seconds(one, one_by_one(one)) for _ in range(4))
        print(f"| {length} | {first * 1e3:.1f} | {min(more) * 1e3:.1f} | {length / min(more):.0f} |", flush=True)


if __name__ == "__main__":
    main()
