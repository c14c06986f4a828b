"""candding, in its own environment, on weights of our choice.

It has a model for each head, so three heads are three passes. It knows BAAI/bge-m3 from the hub; a folder laid out as
the hub's cache, with our checkpoint in it, stands in for that.
"""

import os
from collections.abc import Sequence
from typing import Any

from m3_bench.workers.serve import Encoder, serve
from m3_bench.workers.vectors import Vectors

_MODEL = "BAAI/bge-m3"


class CanddingEncoder(Encoder):
    """`TextEmbedding`, `SparseTextEmbedding` and `MultiVectorTextEmbedding`, each loaded when it is first asked for."""

    packages = ("candding", "numpy")

    def __init__(self, cache: str) -> None:
        os.environ["HF_HUB_CACHE"] = cache  # threads come from the environment too: RAYON_NUM_THREADS
        import candding

        self._classes = {
            "dense": candding.TextEmbedding,
            "sparse": candding.SparseTextEmbedding,
            "colbert": candding.MultiVectorTextEmbedding,
        }
        self._models: dict[str, Any] = {}
        self._model("dense")

    def _model(self, head: str) -> Any:
        if head not in self._models:
            self._models[head] = self._classes[head](_MODEL, device="cpu", dtype="f32")
        return self._models[head]

    def run(self, texts: Sequence[str], heads: Sequence[str]) -> Any:
        """See `serve.Encoder.run`."""
        for head in heads:
            self._model(head).embed(list(texts), batch_size=len(texts))
        return texts

    def work(self, result: Any) -> float:
        """See `serve.Encoder.work`."""
        return float(sum(self._model("dense").token_count(list(result))))

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Vectors:
        """See `serve.Encoder.vectors`: every text alone."""
        found = {head: [self._model(head).embed([text])[0] for text in texts] for head in heads}
        rows = found.get("sparse")
        weights = rows and [dict(zip(row.indices.tolist(), row.values.tolist(), strict=True)) for row in rows]
        return Vectors(found["dense"], weights, found.get("colbert"))


if __name__ == "__main__":
    serve(CanddingEncoder)
