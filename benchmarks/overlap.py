"""Tokenizing while the engine runs against tokenizing first, in turns, through `encode`.

    python benchmarks/overlap.py BUNDLE [--variant onnx-int8] [--threads 2] [--rounds 5] [--texts 6000] [--low-memory]

Texts are runs of words out of the exporter's probe texts, in many languages. Each round runs both ways
(A B A B …). Prints tokens per second, best and median, the ratio of the medians, and what tokenizing alone would take.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
from m3_runtime.encode.windows import Window, tokenized_windows

from m3_export.calibration.texts import probe_texts
from m3_runtime import M3Encoder, pipeline
from m3_runtime.cpu import cpu_info, default_threads
from m3_runtime.encode.options import EncodeOptions
from m3_runtime.tokenizer import M3Tokenizer

Windows = Callable[[Sequence[str], EncodeOptions, M3Tokenizer], Generator[Window, None, None]]
MAX_LENGTH = 64


def tokenized_first(
    texts: Sequence[str], options: EncodeOptions, tokenizer: M3Tokenizer
) -> Generator[Window, None, None]:
    """What the runtime did before: all texts are ids before the engine starts."""
    yield Window(0, tokenizer.encode_batch(texts, options.max_length, options.on_truncate))


def short_texts(count: int) -> list[str]:
    """Seeded runs of 3 to 30 neighbouring words out of the probe texts."""
    words = [text.text.split() for text in probe_texts() if len(text.text.split()) > 30]
    rng = np.random.default_rng(0)
    texts = []
    for number in range(count):
        source, length = words[number % len(words)], int(rng.integers(3, 31))
        start = int(rng.integers(0, len(source) - length + 1))
        texts.append(" ".join(source[start : start + length]))
    return texts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", default="auto")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=6000)
    parser.add_argument("--low-memory", action="store_true")
    args = parser.parse_args()
    texts = short_texts(args.texts)
    ways: dict[str, Windows] = {"first": tokenized_first, "while": tokenized_windows}
    times: dict[str, list[float]] = {name: [] for name in ways}
    with M3Encoder.open(args.bundle, variant=args.variant, threads=args.threads, low_memory=args.low_memory) as encoder:
        start = time.perf_counter()
        tokens = int(encoder.tokenizer.encode_batch(texts, MAX_LENGTH).lengths.sum())
        alone_s = time.perf_counter() - start
        for number in range(args.rounds + 1):
            for name, way in ways.items():
                pipeline.tokenized_windows = way
                start = time.perf_counter()
                encoder.encode(texts, max_length=MAX_LENGTH)
                if number:
                    times[name].append(time.perf_counter() - start)
        print(f"{encoder.variant.name}, {cpu_info().name}, {args.threads} threads, {len(texts)} texts, {tokens} tokens")
    print(f"tokenizing alone: {alone_s:.2f} s")
    for name, seconds in times.items():
        print(f"{name}: {tokens / min(seconds):.0f} tokens/s, median {tokens / statistics.median(seconds):.0f}")
    print(f"ratio of medians: {statistics.median(times['first']) / statistics.median(times['while']):.3f}")


if __name__ == "__main__":
    main()
