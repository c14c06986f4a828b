"""How the runtime puts texts together, against batches of one length and against padded neighbours.

    python benchmarks/batching.py BUNDLE [--variant openvino-int8] [--threads 2] [--rounds 5] [--texts 60]

Ids are noise; lengths are drawn at random. Contenders take turns. Prints tokens per second, real tokens only, best and
median of the rounds, then what one text of each of some lengths gets: its first run, when its shape is new to the
engine, and its best.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head, Manifest
from m3_runtime.bundle.reader import Bundle
from m3_runtime.cpu import cpu_info, default_threads
from m3_runtime.encode.batching import DEFAULT_TOKEN_BUDGET, Batch, Limits, Ready, plan_batches
from m3_runtime.encode.options import DEFAULT_BATCH_SIZE
from m3_runtime.engines import Engine
from m3_runtime.engines.select import choose_variant, open_engine

NEIGHBOURS = 32
LENGTHS = (8, 16, 32, 64, 128, 256, 512, 600)
AT_ONCE = (4, 8, 16, 32)
SETS = 6
"""A handful of queries is drawn so many times: their lengths differ from set to set."""

Lengths = NDArray[np.int64]
Plan = Callable[[Lengths], Sequence[Batch]]


def by_length(lengths: Lengths) -> Sequence[Batch]:
    """Batches of one length, however short."""
    return list(plan_batches(lengths, Limits(DEFAULT_TOKEN_BUDGET, DEFAULT_BATCH_SIZE)))


def padded_neighbours(lengths: Lengths) -> Sequence[Batch]:
    """Sorted by length, so many at a time."""
    order = np.argsort(-lengths, kind="stable")
    starts = range(0, order.size, NEIGHBOURS)
    return [Batch(tuple(order[i : i + 1] for i in range(at, min(at + NEIGHBOURS, order.size)))) for at in starts]


class Bench:
    """An engine, and noise to feed it with."""

    def __init__(self, engine: Engine, manifest: Manifest) -> None:
        self._engine, self._manifest = engine, manifest
        vocab_size = manifest.geometry.vocab_size
        self._noise = np.random.default_rng(0).integers(5, vocab_size - 2, 2**14).astype(np.int32)

    def as_runtime(self, lengths: Lengths) -> Sequence[Batch]:
        """What the runtime does."""
        limits = Limits(DEFAULT_TOKEN_BUDGET, DEFAULT_BATCH_SIZE, self._engine.packed_tokens)
        return list(plan_batches(lengths, limits))

    def seconds(self, sets: Sequence[Lengths], plan: Plan) -> float:
        """Time of sets of texts, one after the other."""
        start = time.perf_counter()
        for lengths in sets:
            for batch in plan(lengths):
                ready = Ready(batch, tuple(self._noise[: lengths[i]] for i in batch.indices))
                tokens = ready.tokens(self._manifest.tokenizer.pad_id, self._manifest.pooling)
                self._engine.run(tokens, list(Head))
        return time.perf_counter() - start

    def rates(self, contenders: Sequence[tuple[Sequence[Lengths], Plan]], rounds: int) -> list[tuple[float, float]]:
        """Tokens per second of each contender, best and median of the rounds, in turns; what is seen first is new."""
        for sets, plan in contenders:
            self.seconds(sets, plan)
        times = np.array([[self.seconds(sets, plan) for sets, plan in contenders] for _ in range(rounds)])
        tokens = np.array([sum(int(lengths.sum()) for lengths in sets) for sets, _ in contenders])
        return list(zip(tokens / times.min(axis=0), tokens / np.median(times, axis=0), strict=True))


def compared(bench: Bench, rows: dict[str, tuple[Sequence[Lengths], Plan]], rounds: int) -> None:
    """Print rows; the first is what the others are compared with."""
    rates = bench.rates(list(rows.values()), rounds)
    for name, (best, median) in zip(rows, rates, strict=True):
        ratios = f"{best / rates[0][0]:.2f} | {median / rates[0][1]:.2f}"
        print(f"| {name} | {best:.0f} | {median:.0f} | {ratios} |", flush=True)


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", default="auto")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=60)
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    variant, manifest = choose_variant(bundle, args.variant), bundle.manifest
    bench = Bench(open_engine(bundle, variant, args.threads), manifest)
    longest = min(600, manifest.geometry.max_tokens)
    rng, count = np.random.default_rng(0), args.texts
    print(f"{manifest.source.name}, {variant.name}, {cpu_info().name}, {args.threads} threads\n")
    print("| texts | tokens/s, best | median | ÷ the first, best | median |\n|---|---|---|---|---|")
    for at_once in AT_ONCE:
        sets = [rng.integers(5, 26, at_once) for _ in range(SETS)]
        title = f"{at_once} of 5 to 25 tokens"
        rows = {f"{title}, by length": (sets, by_length), f"{title}, as the runtime does": (sets, bench.as_runtime)}
        compared(bench, rows, args.rounds)
    mixed = rng.integers(5, longest + 1, count)
    equal = np.full(count, round(mixed.mean()))
    rows = {
        f"{count} of {equal[0]} tokens": ([equal], bench.as_runtime),
        f"{count} of 5 to {longest} tokens, as the runtime does": ([mixed], bench.as_runtime),
        "the same, by length": ([mixed], by_length),
        "the same, padded neighbours": ([mixed], padded_neighbours),
    }
    compared(bench, rows, args.rounds)
    print("\n| one text of | first, ms | best, ms | tokens/s |\n|---|---|---|---|")
    for length in LENGTHS[: sum(length <= longest for length in LENGTHS)]:
        first, *more = (bench.seconds([np.array([length])], bench.as_runtime) for _ in range(6))
        print(f"| {length} | {first * 1e3:.1f} | {min(more) * 1e3:.1f} | {length / min(more):.0f} |", flush=True)


if __name__ == "__main__":
    main()
