"""A variant of a bundle, through `M3Encoder`."""

from collections.abc import Sequence

import numpy as np

from m3_bench.workers.serve import Encoder, serve
from m3_bench.workers.vectors import Vectors, by_id
from m3_runtime import Encoding, M3Encoder


class BundleEncoder(Encoder):
    """`M3Encoder.encode`, whole texts up to the model's limit."""

    def __init__(self, bundle: str, variant: str, threads: int) -> None:
        self._encoder = M3Encoder.open(bundle, variant=variant, threads=threads)
        self.packages = (self._encoder.variant.engine.value, "tokenizers", "numpy")

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

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Vectors:
        found = self.run(texts, heads)
        lexical, colbert = found.lexical_weights, found.colbert_vecs
        assert isinstance(lexical, list | None) and isinstance(colbert, list | None)
        return Vectors(found.dense_vecs, None if lexical is None else [by_id(row) for row in lexical], colbert)


if __name__ == "__main__":
    serve(BundleEncoder)
