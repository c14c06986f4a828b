"""A variant of a bundle, through `M3Encoder`."""

import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np

from m3_bench.workers.serve import Encoder, serve
from m3_bench.workers.vectors import Vectors, by_id
from m3_runtime import Bundle, Encoding, M3Encoder
from m3_runtime.engines.select import AUTO, choose_variant
from m3_runtime.loading import load

P = ParamSpec("P")
R = TypeVar("R")


class BundleEncoder(Encoder):
    """`M3Encoder.encode`, whole texts up to the model's limit. Tokenizer and engine are watched while they work."""

    def __init__(self, bundle: str, variant: str, threads: int) -> None:
        """Load a variant as `M3Encoder.open` does."""
        opened = Bundle.open(bundle)
        chosen = choose_variant(opened, variant, AUTO)
        self.packages = (chosen.engine.value, "tokenizers", "numpy")
        self._spent_s: dict[str, float] = {}
        tokenizer, engine = load(opened, chosen, threads, cache_dir=None, low_memory=False)
        tokenizer.encode_batch = self._watched("tokenizer", tokenizer.encode_batch)  # type: ignore[method-assign]
        engine.run = self._watched("engine", engine.run)  # type: ignore[method-assign]
        self._encoder = M3Encoder(opened, chosen, tokenizer, engine)

    def run(self, texts: Sequence[str], heads: Sequence[str]) -> Encoding:
        return self._encoder.encode(
            list(texts),
            max_length=self._encoder.max_tokens,
            return_dense="dense" in heads,
            return_sparse="sparse" in heads,
            return_colbert_vecs="colbert" in heads,
        )

    def work(self, result: Encoding) -> float:
        return float(np.sum(result.token_counts))

    def parts(self) -> tuple[float, float]:
        return self._spent_s.pop("tokenizer", 0.0), self._spent_s.pop("engine", 0.0)

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Vectors:
        found = self.run(texts, heads)
        lexical, colbert = found.lexical_weights, found.colbert_vecs
        assert isinstance(lexical, list | None) and isinstance(colbert, list | None)
        return Vectors(found.dense_vecs, None if lexical is None else [by_id(row) for row in lexical], colbert)

    def _watched(self, part: str, call: Callable[P, R]) -> Callable[P, R]:
        """The same call, whose time is added up; one caller at a time."""

        @wraps(call)
        def watched(*args: P.args, **kwargs: P.kwargs) -> R:
            started_s = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._spent_s[part] = self._spent_s.get(part, 0.0) + time.perf_counter() - started_s

        return watched


if __name__ == "__main__":
    serve(BundleEncoder)
