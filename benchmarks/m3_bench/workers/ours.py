"""A variant of a bundle, through `M3Encoder`."""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np

from m3_bench.workers.serve import Encoder, serve
from m3_bench.workers.vectors import Vectors, by_id
from m3_runtime import Bundle, Encoding, M3Encoder
from m3_runtime.bundle.manifest import Variant
from m3_runtime.engines import Engine
from m3_runtime.engines.select import AUTO, choose_variant
from m3_runtime.loading import load
from m3_runtime.tokenizer import M3Tokenizer

P = ParamSpec("P")
R = TypeVar("R")


class _Watch:
    """Adds up the time spent in some calls; one caller at a time."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def taken(self) -> float:
        """Seconds since it was last asked."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def over(self, call: Callable[P, R]) -> Callable[P, R]:
        """The same call, watched."""

        @wraps(call)
        def watched(*args: P.args, **kwargs: P.kwargs) -> R:
            started_s = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._seconds += time.perf_counter() - started_s

        return watched


class BundleEncoder(Encoder):
    """`M3Encoder.encode`, whole texts up to the model's limit. Tokenizer and engine are watched while they work."""

    def __init__(self, tokenizer: M3Tokenizer, engine: Engine, bundle: Bundle, variant: Variant) -> None:
        self._tokenising, self._running = _Watch(), _Watch()
        tokenizer.encode_batch = self._tokenising.over(tokenizer.encode_batch)  # type: ignore[method-assign]
        engine.run = self._running.over(engine.run)  # type: ignore[method-assign]
        self._encoder = M3Encoder(bundle, variant, tokenizer, engine)

    @classmethod
    def open(cls, folder: Path, name: str, threads: int) -> "BundleEncoder":
        """Load a variant as `M3Encoder.open` does."""
        bundle = Bundle.open(folder)
        variant = choose_variant(bundle, name, AUTO)
        tokenizer, engine = load(bundle, variant, threads, cache_dir=None, low_memory=False)
        return cls(tokenizer, engine, bundle, variant)

    def run(self, texts: Sequence[str], heads: Sequence[str]) -> Encoding:
        """See `serve.Encoder.run`."""
        return self._encoder.encode(
            list(texts),
            max_length=self._encoder.max_tokens,
            return_dense="dense" in heads,
            return_sparse="sparse" in heads,
            return_colbert_vecs="colbert" in heads,
        )

    def inspect(self, result: Encoding) -> tuple[float, Sequence[float]]:
        """See `serve.Encoder.inspect`."""
        dense = result.dense_vecs
        return float(np.sum(result.token_counts)), [] if dense is None else dense[0].tolist()

    def parts(self) -> tuple[float, float]:
        """See `serve.Encoder.parts`."""
        return self._tokenising.taken(), self._running.taken()

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Vectors:
        """See `serve.Encoder.vectors`."""
        found = self.run(texts, heads)
        lexical, colbert = found.lexical_weights, found.colbert_vecs
        assert isinstance(lexical, list | None) and isinstance(colbert, list | None)
        return Vectors(found.dense_vecs, None if lexical is None else [by_id(row) for row in lexical], colbert)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    engine = "openvino" if args.variant.startswith("openvino") else "onnxruntime"
    serve(lambda: BundleEncoder.open(args.bundle, args.variant, args.threads), (engine, "tokenizers", "numpy"))


if __name__ == "__main__":
    main()
