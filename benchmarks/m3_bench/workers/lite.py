"""bge-m3-lite, in its own environment, on weights of our choice.

It knows one model, pinned by SHA-256, and downloads it. So its file resolver, and only that, is replaced: every file
comes from the folder that `lite_build` filled. Everything that runs is the package's own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3_bench.workers.serve import Encoder, serve
from m3_bench.workers.vectors import Vectors, by_id


def take_files_from(folder: Path) -> None:
    """Make the package find all its files in a folder, whatever their digests."""
    from bge_m3_lite import hub

    def ensure_files(files: Sequence[Any], *_: object, **__: object) -> dict[str, Path]:
        return {file.name: folder / file.name for file in files}

    hub.ensure_files = ensure_files


class LiteEncoder(Encoder):
    """`BGEM3Embedder.encode` as its users call it."""

    packages = ("bge-m3-lite", "onnxruntime", "numpy")

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        from bge_m3_lite import BGEM3Embedder

        take_files_from(Path(folder))
        self._embedder = BGEM3Embedder(precision=precision, num_threads=threads, quiet=True)

    def run(self, texts: Sequence[str], heads: Sequence[str]) -> Any:
        """See `serve.Encoder.run`. Its batches hold 12 texts by default: ours shall not win by that."""
        return self._embedder.encode(
            texts,
            batch_size=len(texts),
            return_dense="dense" in heads,
            return_sparse="sparse" in heads,
            return_colbert_vecs="colbert" in heads,
        )

    def work(self, result: Any) -> float:
        """See `serve.Encoder.work`: it has a ColBERT row for every token but the first."""
        return float(sum(len(rows) + 1 for rows in result["colbert_vecs"]))

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Vectors:
        """See `serve.Encoder.vectors`."""
        found = self.run(texts, heads)
        return Vectors(found["dense_vecs"], [by_id(row) for row in found["lexical_weights"]], found["colbert_vecs"])


if __name__ == "__main__":
    serve(LiteEncoder)
