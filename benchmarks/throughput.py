"""Tokens per second of each variant and of PyTorch FP32, in turns, in one run, with the same threads.

    python benchmarks/throughput.py BUNDLE CHECKPOINT [--threads 2] [--rounds 5]

All three heads, ids made of noise. Each round runs every contender once, one after the other (A B C A B C …), so that
a machine that slows down slows all of them. Read the ratios. PyTorch is transformers' encoder (its fastest attention)
plus the heads, as FlagEmbedding runs it, without FlagEmbedding's extra passes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from m3_export.checkpoint import Checkpoint
from m3_export.recipe import Recipe
from m3_export.reference import encoder_of
from m3_runtime.bundle import Bundle
from m3_runtime.cpu import cpu_info, default_threads
from m3_runtime.engines import TokenBatch
from m3_runtime.engines.select import open_engine
from m3_runtime.manifest import Head

SHAPES = ((1, 16), (1, 128), (16, 128), (4, 512))
BETWEEN_S = 0.2  # lets the last contender's threads stop spinning
Run = Callable[[TokenBatch], object]


def torch_fp32(folder: Path, threads: int) -> Run:
    """PyTorch FP32 on the checkpoint, all three heads."""
    torch.set_num_threads(threads)
    checkpoint = Checkpoint.open(folder, Recipe())
    encoder = encoder_of(checkpoint)
    sparse, colbert = checkpoint.sparse, checkpoint.colbert
    assert sparse is not None and colbert is not None

    def run(batch: TokenBatch) -> object:
        with torch.inference_mode():
            ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
            hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            weights = torch.relu(functional.linear(hidden, sparse.weight, sparse.bias))
            rows = functional.normalize(functional.linear(hidden[:, 1:], colbert.weight, colbert.bias), dim=-1)
            return functional.normalize(hidden[:, 0], dim=-1), weights, rows

    return run


def contenders(bundle: Bundle, checkpoint: Path, threads: int) -> dict[str, Run]:
    """Everything that is measured, by name; PyTorch first."""
    found = {"pytorch-fp32": torch_fp32(checkpoint, threads)}
    for variant in bundle.manifest.variants:
        engine = open_engine(bundle, variant, threads)
        found[variant.name] = lambda batch, engine=engine: engine.run(batch, list(Head))  # type: ignore[misc]
    return found


def noise_batch(shape: tuple[int, int], vocab_size: int) -> TokenBatch:
    """A batch of random ids without padding."""
    ids = np.random.default_rng(0).integers(5, vocab_size - 2, shape)
    ids[:, 0], ids[:, -1] = 0, 2
    return TokenBatch(ids, np.ones_like(ids))


def measure(runs: dict[str, Run], batch: TokenBatch, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, in turns; a first round is discarded."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            time.sleep(BETWEEN_S)
            start = time.perf_counter()
            run(batch)
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    """Measure and print a Markdown table; raw seconds as JSON with --json FILE."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the raw seconds here")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    runs = contenders(bundle, args.checkpoint, args.threads)
    raw = {}
    print(
        f"{bundle.manifest.source.name} on {cpu_info().name}, {args.threads} threads; "
        "tokens/s best (median), × PyTorch by medians\n"
    )
    print("| texts x tokens | " + " | ".join(runs) + " |\n|" + "---|" * (len(runs) + 1))
    for shape in SHAPES:
        times = measure(runs, noise_batch(shape, bundle.manifest.geometry.vocab_size), args.rounds)
        raw["x".join(map(str, shape))] = times
        tokens, base = shape[0] * shape[1], statistics.median(times["pytorch-fp32"])
        cells = [
            f"{tokens / min(t):.0f} ({tokens / statistics.median(t):.0f}), {base / statistics.median(t):.1f}×"
            for t in times.values()
        ]
        print(f"| {shape[0]}x{shape[1]} | " + " | ".join(cells) + " |", flush=True)
    if args.json:
        args.json.write_text(
            json.dumps({"machine": cpu_info().name, "threads": args.threads, "seconds": raw}, indent=1)
        )


if __name__ == "__main__":
    main()
