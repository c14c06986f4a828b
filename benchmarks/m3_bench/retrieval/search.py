"""Searching with vectors: each head, and their sums, as the published evaluations do it.

Dense and sparse search the whole corpus. Their sum ranks the union of the best 1000 of each, where a document that is
not among one head's best gets 0 for it. ColBERT, and the sum of all three, rank the candidates: the best of dense.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from m3_bench.retrieval.methods import Hybrid
from m3_bench.retrieval.metrics import DEPTH
from m3_bench.retrieval.ranking import Floats, Places, Ranking, best, best_above_zero
from m3_bench.retrieval.vectors import Vectors
from m3_runtime.bundle.manifest import Head

UNION_DEPTH = 1000
_SCORES_AT_ONCE = 1 << 25  # 128 MB of float32 a head


@dataclass(frozen=True)
class Ranked:
    """What a method found."""

    method: str
    ranking: Ranking


@dataclass(frozen=True, eq=False)
class Candidates:
    """A query's K candidates: places, ascending, so that ties go to the earlier document; (K,) scores of two heads."""

    places: Places
    dense: Floats
    sparse: Floats


@dataclass(frozen=True)
class FirstStage:
    """What dense and sparse found, and what is left to ColBERT."""

    ranked: tuple[Ranked, ...]
    candidates: tuple[Candidates, ...]

    @property
    def wanted(self) -> Places:
        """Places of all documents that are anyone's candidate, ascending."""
        return np.unique(np.concatenate([one.places for one in self.candidates]))


def first_stage(queries: Vectors, documents: Vectors, hybrids: Sequence[Hybrid], candidates: int) -> FirstStage:
    """Search N documents with Q queries by dense, sparse and their sums.

    Args:
        queries: Q.
        documents: N, of the same heads.
        hybrids: those of dense and sparse alone are searched, others are left to `second_stage`.
        candidates: how many of dense's best `second_stage` gets, per query.
    """
    two_headed = [hybrid for hybrid in hybrids if hybrid.colbert is None]
    rows = [_row(dense, sparse, two_headed, candidates) for dense, sparse in _scores(queries, documents)]
    names = [Head.DENSE.value]
    if documents.sparse is not None:
        names += [Head.SPARSE.value, *(hybrid.name for hybrid in two_headed)]
    ranked = tuple(Ranked(name, [found[i] for found, _ in rows]) for i, name in enumerate(names))
    return FirstStage(ranked, tuple(left for _, left in rows))


def second_stage(stage: FirstStage, colbert: Sequence[Floats], hybrids: Sequence[Hybrid]) -> tuple[Ranked, ...]:
    """Rank each query's candidates by ColBERT and by sums of all three heads.

    Args:
        stage: what came before.
        colbert: per query, the ColBERT score of each candidate.
        hybrids: those with ColBERT are ranked.
    """
    pairs = list(zip(stage.candidates, colbert, strict=True))
    ranked = [Ranked(Head.COLBERT.value, [one.places[best(scores, DEPTH)] for one, scores in pairs])]
    for hybrid in hybrids:
        if hybrid.colbert is not None:
            order = (best(hybrid.fused(one.dense, one.sparse, scores), DEPTH) for one, scores in pairs)
            ranking = [one.places[places] for (one, _), places in zip(pairs, order, strict=True)]
            ranked.append(Ranked(hybrid.name, ranking))
    return tuple(ranked)


def _scores(queries: Vectors, documents: Vectors) -> Iterator[tuple[Floats, Floats | None]]:
    """Per query, (N,) dense and sparse scores; a block of queries is multiplied at a time."""
    block = max(1, _SCORES_AT_ONCE // len(documents.dense))
    turned = None if documents.sparse is None else documents.sparse.T.tocsr()
    for start in range(0, len(queries.dense), block):
        dense = queries.dense[start : start + block] @ documents.dense.T
        sparse = None if turned is None else (queries.sparse[start : start + block] @ turned).toarray()
        yield from ((row, None if sparse is None else sparse[i]) for i, row in enumerate(dense))


def _row(
    dense: Floats, sparse: Floats | None, hybrids: Sequence[Hybrid], candidates: int
) -> tuple[list[Places], Candidates]:
    by_dense = best(dense, max(UNION_DEPTH, candidates))
    left = np.sort(by_dense[:candidates])
    found = [by_dense[:DEPTH]]
    if sparse is None:
        return found, Candidates(left, dense[left], np.zeros(len(left), dtype=np.float32))
    by_sparse = best_above_zero(sparse, UNION_DEPTH)
    union, of_dense, of_sparse = _union(dense, by_dense[:UNION_DEPTH], sparse, by_sparse)
    fused = (best(hybrid.fused(of_dense, of_sparse), DEPTH) for hybrid in hybrids)
    found += [by_sparse[:DEPTH], *(union[places] for places in fused)]
    return found, Candidates(left, dense[left], sparse[left])


def _union(dense: Floats, by_dense: Places, sparse: Floats, by_sparse: Places) -> tuple[Places, Floats, Floats]:
    """Places that either head found, ascending, with both scores; 0 where a head did not find the document."""
    union = np.union1d(by_dense, by_sparse)
    of_dense = np.where(np.isin(union, by_dense), dense[union], np.float32(0))
    of_sparse = np.where(np.isin(union, by_sparse), sparse[union], np.float32(0))
    return union, of_dense, of_sparse
