"""ColBERT scores of each query's candidates."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from m3_bench.retrieval.ranking import Floats, Places
from m3_bench.retrieval.vectors import ColbertPart


def maxsim(query: Floats, documents: Sequence[Floats]) -> Floats:
    """`m3_runtime.scoring.colbert_score` of one query with D documents, in one multiplication.

    Args:
        query: (Lq, C).
        documents: D times (Lp, C), each with at least one row.

    Returns:
        (D,) scores.
    """
    starts = np.cumsum([0, *(len(rows) for rows in documents[:-1])])
    similarity = query @ np.concatenate(documents).T
    return np.asarray(np.maximum.reduceat(similarity, starts, axis=1).mean(axis=0), dtype=np.float32)


def candidate_scores(
    queries: Sequence[NDArray[np.float16]], candidates: Sequence[Places], parts: Iterable[ColbertPart]
) -> Sequence[Floats]:
    """ColBERT scores of Q queries, each with its own candidates.

    Args:
        queries: (Lq, C) rows of each.
        candidates: per query, places of documents, ascending.
        parts: rows of all documents that are anyone's candidate.

    Returns:
        Per query the score of each candidate, in its order.
    """
    scores = [np.full(len(places), -np.inf, dtype=np.float32) for places in candidates]
    for part in parts:
        for number, places in enumerate(candidates):
            slots = np.flatnonzero(np.isin(places, part.places, assume_unique=True))
            if slots.size:
                rows = [part.rows[i] for i in np.searchsorted(part.places, places[slots]).tolist()]
                scores[number][slots] = maxsim(queries[number].astype(np.float32), rows)
    return scores
