"""A variant of a bundle, through `M3Encoder` or `M3Reranker`."""

from collections.abc import Sequence

import numpy as np

from m3_bench.workers.pairs import pairs_of
from m3_bench.workers.serve import Encoder, serve
from m3_bench.workers.vectors import Vectors, by_id
from m3_runtime import Bundle, Encoding, M3Encoder, M3Reranker, RerankScores


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


class BundleReranker(Encoder):
    """`M3Reranker.score_pairs`, whole pairs up to the model's limit."""

    def __init__(self, bundle: str, variant: str, threads: int) -> None:
        self._reranker = M3Reranker.open(bundle, variant=variant, threads=threads)
        self.packages = (self._reranker.variant.engine.value, "tokenizers", "numpy")

    def run(self, texts: Sequence[str], _heads: Sequence[str]) -> RerankScores:
        return self._reranker.score_pairs(pairs_of(texts), max_length=self._reranker.max_tokens)

    def work(self, result: RerankScores) -> float:
        return float(np.sum(result.token_counts))


def open_bundle(bundle: str, variant: str, threads: int) -> Encoder:
    """What a bundle's manifest says it is."""
    if Bundle.open(bundle).manifest.is_reranker:
        return BundleReranker(bundle, variant, threads)
    return BundleEncoder(bundle, variant, threads)


if __name__ == "__main__":
    serve(open_bundle)
