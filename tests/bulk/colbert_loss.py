"""What smaller ColBERT costs: MaxSim and nDCG@10 of each way of keeping rows, against the rows as they are.

    python tests/bulk/colbert_loss.py BUNDLE DATASET [QUERIES] [-o FILE.json]

prints a Markdown table and writes its values as JSON; DATASET is as for m3-bench retrieval, of which the first QUERIES
are asked.

ColBERT ranks dense's best 100. Queries are never made smaller: they are not stored.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.retrieval.datasets import open_dataset
from m3_bench.retrieval.search import best, measured
from m3_runtime import Bundle, M3Encoder
from m3_runtime.encode.colbert import ColbertDtype, projected, stored
from m3_runtime.encode.pooling import pooled
from m3_runtime.scoring import colbert_score

CANDIDATES = 100
Rows = NDArray[Any]


@dataclass(frozen=True)
class Loss:
    """One way of keeping rows.

    Attributes:
        way: its name.
        row_share: rows that are kept, of all.
        bytes_per_token: what a token of the text takes.
        million_gb: what a million such passages take, in 10⁹ bytes.
        maxsim_shift: mean change of a query's score of a document.
        maxsim_spread: standard deviation of the change, which is what can change an order.
        maxsim_p95: of the absolute change, the 95th percentile.
        ndcg: nDCG@10.
        ndcg_loss: what is lost of it, 95 % of paired bootstrap resamples lie between the other two.
    """

    way: str
    row_share: float
    bytes_per_token: float
    million_gb: float
    maxsim_shift: float
    maxsim_spread: float
    maxsim_p95: float
    ndcg: float
    ndcg_loss: tuple[float, float, float]


@dataclass(frozen=True)
class Way:
    """How rows are kept: on a share of the dimensions, pooled, as this type."""

    dtype: ColbertDtype
    pool: int = 1
    dim_share: float = 1.0

    @property
    def name(self) -> str:
        dims = f", 1/{1 / self.dim_share:g} of the dimensions" if self.dim_share < 1 else ""
        return f"{self.dtype.value}{dims}{f', pool {self.pool}' if self.pool > 1 else ''}"


WAYS = (
    *(Way(ColbertDtype(name), pool) for pool in (1, 2) for name in ("float16", "int8", "int4", "binary")),
    *(Way(ColbertDtype(name), pool) for pool in (3, 4) for name in ("float16", "int8")),
    *(Way(ColbertDtype(name), dim_share=1 / part) for part in (2, 4) for name in ("float16", "int4", "binary")),
)


def losses(
    bundle: Path, dataset: Path, variant: str = "onnx-fp32", limit: int | None = None, ways: Sequence[Way] = WAYS
) -> list[Loss]:
    data = open_dataset(dataset, queries=limit)
    with M3Encoder.open(bundle, variant=variant) as encoder:
        documents = encoder.encode([item.text for item in data.documents], return_colbert_vecs=True)
        queries = encoder.encode([item.text for item in data.queries], return_colbert_vecs=True)
        axes = encoder.bundle.colbert_axes(documents.colbert_vecs[0].shape[1])
    similarity = queries.dense_vecs @ documents.dense_vecs.T
    candidates = [np.sort(best(row, CANDIDATES)) for row in similarity]
    whole = _scores(queries.colbert_vecs, documents.colbert_vecs, candidates)
    exact = _ndcg(whole, candidates, data.relevant)
    found = []

    @cache
    def fewer(dim: int, pool: int) -> tuple[list[Rows], list[Rows]]:
        """Rows of the queries and of the documents, the latter pooled."""
        asked, kept = (
            [projected(rows, axes[:, :dim], normalize=True) if dim < len(axes) else rows for rows in side.colbert_vecs]
            for side in (queries, documents)
        )
        return asked, [pooled(rows, pool) for rows in kept]

    for way in ways:
        dim = round(len(axes) * way.dim_share)
        asked, kept = fewer(dim, way.pool)
        small = [np.asarray(stored(rows, way.dtype)) for rows in kept]
        scores = _scores(asked, small, candidates)
        shift = np.concatenate(scores) - np.concatenate(whole)
        rows = sum(map(len, small))
        share = rows / sum(map(len, documents.colbert_vecs))
        ndcg = _ndcg(scores, candidates, data.relevant)
        found.append(
            Loss(
                way=way.name,
                row_share=share,
                bytes_per_token=share * way.dtype.row_bytes(dim),
                million_gb=rows / len(small) * way.dtype.row_bytes(dim) / 1e3,
                maxsim_shift=float(shift.mean()),
                maxsim_spread=float(shift.std()),
                maxsim_p95=float(np.percentile(np.abs(shift), 95)),
                ndcg=float(ndcg.mean()),
                ndcg_loss=_interval(exact - ndcg),
            )
        )
    return found


def _scores(queries: Sequence[Rows], documents: Sequence[Rows], candidates: Sequence[Rows]) -> list[Rows]:
    pairs = zip(queries, candidates, strict=True)
    return [np.array([colbert_score(query, documents[place]) for place in places.tolist()]) for query, places in pairs]


def _ndcg(scores: Sequence[Rows], candidates: Sequence[Rows], relevant: Sequence[Mapping[int, int]]) -> Rows:
    ranking = [places[best(row, 10)] for row, places in zip(scores, candidates, strict=True)]
    return np.array(measured(ranking, relevant)["nDCG@10"])


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(one) for one in value]
    return round(value, 5) if isinstance(value, float) else value


def _interval(loss: Rows) -> tuple[float, float, float]:
    picks = np.random.default_rng(0).integers(0, len(loss), (10_000, len(loss)))
    low, high = np.percentile(loss[picks].mean(axis=1), [2.5, 97.5])
    return float(loss.mean()), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description="What smaller ColBERT costs.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("queries", type=int, nargs="?")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    found = losses(options.bundle, options.dataset, limit=options.queries)
    print(
        "| kept as | rows | bytes a token | a million passages | MaxSim: mean change | spread | p95 | nDCG@10 "
        "| lost (95 %) |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for one in found:
        lost, low, high = one.ndcg_loss
        print(
            f"| {one.way} | {one.row_share:.0%} | {one.bytes_per_token:.0f} | {one.million_gb:.2f} GB "
            f"| {one.maxsim_shift:+.4f} | {one.maxsim_spread:.4f} | {one.maxsim_p95:.4f} | {one.ndcg:.4f} "
            f"| {lost:+.4f} ({low:+.4f} … {high:+.4f}) |"
        )
    if options.output:
        options.output.write_text(json.dumps(_document(options.bundle, options.dataset, options.queries, found)) + "\n")


def _document(bundle: Path, dataset: Path, queries: int | None, found: Sequence[Loss]) -> dict[str, Any]:
    """All values, rounded, and what they were measured on."""
    manifest = Bundle.open(bundle).manifest
    rows = [{key: _rounded(value) for key, value in asdict(one).items()} for one in found]
    return {
        "model": manifest.source.name,
        "space_id": manifest.space_id,
        "tools": dict(manifest.tools),
        "dataset": asdict(open_dataset(dataset, queries=queries).facts),
        "ways": rows,
    }


if __name__ == "__main__":
    main()
