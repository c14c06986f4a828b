"""Searching: BM25, each head, and their sums, as the published evaluations do it; and what a ranking is worth.

Dense and sparse search the whole corpus. Their sum ranks the union of the best 1000 of each, where a document that is
not among one head's best gets 0 for it. ColBERT, and the sum of all three, rank the candidates: the best of dense.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.retrieval.hybrids import FloatArray, Hybrid
from m3_bench.retrieval.vectors import TextVectors
from m3_runtime.bundle.manifest import Head
from m3_runtime.scoring import colbert_score

Indices = NDArray[np.int64]
Ranking = Sequence[Indices]
"""Per query, indices of documents, best first."""
METRICS = ("nDCG@10", "R@10", "R@100", "RR@10")
DEPTH = 100
"""Documents of a ranking that a metric looks at, at most."""
UNION_DEPTH = 1000
_SCORES_AT_ONCE = 1 << 25  # 128 MB of float32 a head
_DIGITS = 6
# Scripts that write no blanks between words: Thai and Lao, Myanmar, Khmer, kana, Han.
_NO_BLANKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
_NO_BLANKS += "\uf900-\ufaff\U00020000-\U000323af"
_RUNS = re.compile(f"[{_NO_BLANKS}]+|[^{_NO_BLANKS}\\s]+")


@dataclass(frozen=True, eq=False)
class Candidates:
    """A query's K candidates: indices, ascending, so that ties go to the earlier document; (K,) scores of two heads."""

    indices: Indices
    dense: FloatArray
    sparse: FloatArray


@dataclass(frozen=True)
class FirstStage:
    """What dense and sparse found, and what is left to ColBERT."""

    ranked: Mapping[str, Ranking]  # by method
    candidates: tuple[Candidates, ...]

    @property
    def wanted(self) -> Indices:
        """Indices of all documents that are anyone's candidate, ascending."""
        return np.unique(np.concatenate([one.indices for one in self.candidates]))


def words_of(text: str) -> list[str]:
    """A text's words, case folded; of scripts without blanks its pairs of characters.

    >>> words_of("Zwei Häuser, 2024!")
    ['zwei', 'häuser', '2024']
    >>> words_of("東京タワー tower 京")
    ['東京', '京タ', 'タワ', 'ワー', 'tower', '京']
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    # letters, numbers and marks make words; \w would cut Hindi words at their vowel signs
    kept = "".join(one if unicodedata.category(one)[0] in "LNM" else " " for one in folded)
    return [word for run in _RUNS.findall(kept) for word in _words_of_run(run)]


def _words_of_run(run: str) -> list[str]:
    is_blankless = re.match(f"[{_NO_BLANKS}]", run) and len(run) > 1
    return [run[i : i + 2] for i in range(len(run) - 1)] if is_blankless else [run]


def best(scores: NDArray[np.floating], most: int) -> Indices:
    """Indices of the highest scores, best first; of equal scores the earlier one.

    >>> best(np.array([0.5, 2.0, 0.5, 0.7]), 3).tolist()
    [1, 3, 0]
    """
    picked = np.arange(scores.size)
    if most < scores.size:
        picked = np.flatnonzero(scores >= np.partition(scores, -most)[-most])
    order = np.argsort(-scores[picked], kind="stable")
    return picked[order][:most].astype(np.int64)


def best_above_zero(scores: NDArray[np.floating], most: int) -> Indices:
    """As `best`, of scores above 0: what an inverted index finds at all."""
    found = best(scores, most)
    return found[scores[found] > 0]


def first_stage(queries: TextVectors, documents: TextVectors, hybrids: Sequence[Hybrid], candidates: int) -> FirstStage:
    """Search N documents with Q queries by dense, sparse and their sums; dense's best are ColBERT's `candidates`."""
    two_headed = [hybrid for hybrid in hybrids if hybrid.colbert is None]
    rows = [_row(dense, sparse, two_headed, candidates) for dense, sparse in _scores(queries, documents)]
    names = [Head.DENSE.value]
    if documents.sparse is not None:
        names += [Head.SPARSE.value, *(hybrid.name for hybrid in two_headed)]
    ranked = {name: [found[i] for found, _ in rows] for i, name in enumerate(names)}
    return FirstStage(ranked, tuple(left for _, left in rows))


def _scores(queries: TextVectors, documents: TextVectors) -> Iterator[tuple[FloatArray, FloatArray | None]]:
    """Per query, (N,) dense and sparse scores; a block of queries is multiplied at a time."""
    block = max(1, _SCORES_AT_ONCE // len(documents.dense))
    turned = None if documents.sparse is None else documents.sparse.T.tocsr()
    for start in range(0, len(queries.dense), block):
        dense = queries.dense[start : start + block] @ documents.dense.T
        sparse = None if turned is None else (queries.sparse[start : start + block] @ turned).toarray()
        yield from ((row, None if sparse is None else sparse[i]) for i, row in enumerate(dense))


def _row(
    dense: FloatArray, sparse: FloatArray | None, hybrids: Sequence[Hybrid], candidates: int
) -> tuple[list[Indices], Candidates]:
    by_dense = best(dense, max(UNION_DEPTH, candidates))
    left = np.sort(by_dense[:candidates])
    found = [by_dense[:DEPTH]]
    if sparse is None:
        return found, Candidates(left, dense[left], np.zeros(len(left), dtype=np.float32))
    by_dense, by_sparse = by_dense[:UNION_DEPTH], best_above_zero(sparse, UNION_DEPTH)
    union = np.union1d(by_dense, by_sparse)  # ascending; a head that did not find a document scores it 0
    of_dense = np.where(np.isin(union, by_dense), dense[union], np.float32(0))
    of_sparse = np.where(np.isin(union, by_sparse), sparse[union], np.float32(0))
    fused = (best(hybrid.fused(of_dense, of_sparse), DEPTH) for hybrid in hybrids)
    found += [by_sparse[:DEPTH], *(union[indices] for indices in fused)]
    return found, Candidates(left, dense[left], sparse[left])


def second_stage(stage: FirstStage, colbert: Sequence[FloatArray], hybrids: Sequence[Hybrid]) -> Mapping[str, Ranking]:
    """Rank each query's candidates by their ColBERT scores and by sums of all three heads."""
    pairs = list(zip(stage.candidates, colbert, strict=True))
    ranked: dict[str, Ranking] = {
        Head.COLBERT.value: [one.indices[best(scores, DEPTH)] for one, scores in pairs],
    }
    for hybrid in hybrids:
        if hybrid.colbert is not None:
            fused = ((one, hybrid.fused(one.dense, one.sparse, scores)) for one, scores in pairs)
            ranked[hybrid.name] = [one.indices[best(scores, DEPTH)] for one, scores in fused]
    return ranked


def colbert_scores(
    queries: Sequence[NDArray[Any]],
    candidates: Sequence[Indices],
    documents: Iterable[tuple[int, NDArray[Any]]],
) -> Sequence[FloatArray]:
    """ColBERT scores of Q queries, each with its own candidates.

    Args:
        queries: (Lq, C) rows of each.
        candidates: per query, indices of documents.
        documents: index and rows (Lp, C) of every document that is anyone's candidate, in any order.

    Returns:
        Per query the score of each candidate, in its order.
    """
    scores = [np.full(len(indices), -np.inf, dtype=np.float32) for indices in candidates]
    slots: dict[int, list[tuple[int, int]]] = {}
    for query, indices in enumerate(candidates):
        for slot, index in enumerate(indices.tolist()):
            slots.setdefault(index, []).append((query, slot))
    for index, rows in documents:
        for query, slot in slots[index]:
            scores[query][slot] = colbert_score(queries[query], rows)
    return scores


def measured(ranking: Ranking, relevant: Sequence[Mapping[int, int]]) -> Mapping[str, tuple[float, ...]]:
    """What a ranking is worth for each query, by trec_eval's code through ir-measures.

    Args:
        ranking: per query, indices of documents, best first.
        relevant: per query, grade by a document's index.

    Returns:
        (Q,) values by name; 0 for a query that found nothing.
    """
    import ir_measures

    labels = {str(q): {str(index): grade for index, grade in grades.items()} for q, grades in enumerate(relevant)}
    # Ranks as scores: trec_eval sorts by score and breaks ties by id, and here the order is already fixed.
    run = {
        str(q): {str(index): float(-rank) for rank, index in enumerate(indices[:DEPTH].tolist())}
        for q, indices in enumerate(ranking)
    }
    evaluator = ir_measures.evaluator([ir_measures.parse_measure(name) for name in METRICS], labels)
    values = {name: [0.0] * len(relevant) for name in METRICS}
    for found in evaluator.iter_calc(run):
        values[str(found.measure)][int(found.query_id)] = round(float(found.value), _DIGITS)
    return {name: tuple(row) for name, row in values.items()}
