"""What smaller ColBERT costs: MaxSim and nDCG@10 of each way of keeping rows, against the rows as they are.

    python tests/bulk/colbert_loss.py BUNDLE DATASET [QUERIES]

prints a Markdown table; DATASET is as for m3-bench retrieval, of which the first QUERIES are asked.

ColBERT ranks dense's best 100. Queries are never made smaller: they are not stored.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.retrieval.datasets import open_dataset
from m3_bench.retrieval.search import best, measured
from m3_runtime import M3Encoder
from m3_runtime.bulk.colbert import pooled, to_int8
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
        maxsim_shift: mean change of a query's score of a document.
        maxsim_p95: of the absolute change, the 95th percentile.
        ndcg: nDCG@10.
        ndcg_loss: what is lost of it, 95 % of paired bootstrap resamples lie between the other two.
    """

    way: str
    row_share: float
    bytes_per_token: float
    maxsim_shift: float
    maxsim_p95: float
    ndcg: float
    ndcg_loss: tuple[float, float, float]


def through_int8(rows: Rows) -> Rows:
    small = to_int8(rows)
    return small.values * small.scales[:, None]


def through_float16(rows: Rows) -> Rows:
    return rows.astype(np.float16).astype(np.float32)


WAYS: Mapping[str, tuple[int, Callable[[Rows], Rows], int, int]] = {
    f"{name}{f', pool {factor}' if factor > 1 else ''}": (factor, keep, value_bytes, row_bytes)
    for factor in (1, 2, 3, 4)
    for name, keep, value_bytes, row_bytes in (("float16", through_float16, 2, 0), ("int8", through_int8, 1, 4))
}
"""By name: the pooling factor, what storing does to rows, bytes of a value, and bytes of a row besides."""


def losses(bundle: Path, dataset: Path, variant: str = "onnx-fp32", limit: int | None = None) -> list[Loss]:
    data = open_dataset(dataset, queries=limit)
    with M3Encoder.open(bundle, variant=variant) as encoder:
        documents = encoder.encode([item.text for item in data.documents], return_colbert_vecs=True)
        queries = encoder.encode([item.text for item in data.queries], return_colbert_vecs=True)
    similarity = queries.dense_vecs @ documents.dense_vecs.T
    candidates = [np.sort(best(row, CANDIDATES)) for row in similarity]
    whole = _scores(queries.colbert_vecs, documents.colbert_vecs, candidates)
    exact = _ndcg(whole, candidates, data.relevant)
    found = []
    for way, (factor, keep, value_bytes, row_bytes) in WAYS.items():
        small = [keep(pooled(rows, factor)) for rows in documents.colbert_vecs]
        scores = _scores(queries.colbert_vecs, small, candidates)
        shift = np.concatenate(scores) - np.concatenate(whole)
        share = sum(map(len, small)) / sum(map(len, documents.colbert_vecs))
        ndcg = _ndcg(scores, candidates, data.relevant)
        found.append(
            Loss(
                way=way,
                row_share=share,
                bytes_per_token=share * (value_bytes * small[0].shape[1] + row_bytes),
                maxsim_shift=float(shift.mean()),
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


def _interval(loss: Rows) -> tuple[float, float, float]:
    picks = np.random.default_rng(0).integers(0, len(loss), (10_000, len(loss)))
    low, high = np.percentile(loss[picks].mean(axis=1), [2.5, 97.5])
    return float(loss.mean()), float(low), float(high)


def main() -> None:
    bundle, dataset, *limit = sys.argv[1:]
    print("| kept as | rows | bytes a token | MaxSim: mean change | p95 of change | nDCG@10 | lost (95 %) |")
    print("|---|---|---|---|---|---|---|")
    for one in losses(Path(bundle), Path(dataset), limit=int(limit[0]) if limit else None):
        lost, low, high = one.ndcg_loss
        print(
            f"| {one.way} | {one.row_share:.0%} | {one.bytes_per_token:.0f} | {one.maxsim_shift:+.4f} "
            f"| {one.maxsim_p95:.4f} | {one.ndcg:.4f} | {lost:+.4f} ({low:+.4f} … {high:+.4f}) |"
        )


if __name__ == "__main__":
    main()
