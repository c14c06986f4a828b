"""Reranking: the best of every ranking in the order of a cross-encoder's scores; each distinct pair is scored once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from m3_bench.retrieval.costs import TIMED_QUERIES, median_ms
from m3_bench.retrieval.hybrids import FloatArray
from m3_bench.retrieval.search import Indices, Ranking
from m3_runtime import InputError, M3Reranker, NoRoomError
from m3_runtime.io.progress import Progress
from m3_runtime.pairs import Pair, is_blank
from m3_runtime.reranker import RerankScores

_PART_PAIRS = 1024


@dataclass(frozen=True)
class Reranked:
    """What a reranker makes of rankings of P distinct pairs; some have an empty side, some were cut."""

    rankings: Mapping[str, Ranking]
    pairs: int
    empty: int
    truncated: int

    @property
    def notes(self) -> list[str]:
        """What was not read as it is."""
        empty = [f"{self.empty} of {self.pairs} pairs have an empty text and go last"] if self.empty else []
        cut = [f"{self.truncated} of {self.pairs} pairs were longer and were cut"] if self.truncated else []
        return empty + cut


def fullest(rankings: Mapping[str, Ranking], depth: int) -> str:
    """The ranking in which the timed queries have most documents, each its best `depth`; BM25 may find hardly any.

    >>> fullest({"few": [np.array([7]), np.array([])], "many": [np.array([7, 8]), np.array([9])]}, 2)
    'many'
    """
    return max(rankings, key=lambda name: sum(len(found[:depth]) for found in rankings[name][:TIMED_QUERIES]))


@dataclass(frozen=True)
class PairScorer:
    """A reranker with the settings of a measurement; `max_length` counts a pair's tokens, None is the usual."""

    reranker: M3Reranker
    max_length: int | None
    depth: int  # documents of each ranking that are scored
    progress: Progress

    def reranked(self, rankings: Mapping[str, Ranking], queries: Sequence[str], documents: Sequence[str]) -> Reranked:
        """Put the best of each ranking into the order of their scores; what comes after them stays where it is.

        Raises:
            M3Error: the reranker failed, `max_length` is more than the model takes, or too little for a query.
        """
        # of a query the documents that any ranking has among its best, ascending
        best = [[ranking[q][: self.depth] for ranking in rankings.values()] for q in range(len(queries))]
        wanted = [np.unique(np.concatenate(of_query)) for of_query in best]
        pairs = [(queries[q], documents[n]) for q, indices in enumerate(wanted) for n in indices.tolist()]
        readable = [n for n, (query, document) in enumerate(pairs) if not (is_blank(query) or is_blank(document))]
        scores, truncated = np.full(len(pairs), -np.inf, np.float32), 0
        starts = range(0, len(readable), _PART_PAIRS)
        for start in self.progress.bar(starts, "pairs", unit=f"×{_PART_PAIRS} pairs"):
            part = readable[start : start + _PART_PAIRS]
            found = self._scored([pairs[n] for n in part])
            scores[part] = found.scores
            truncated += found.truncated
        ends = np.cumsum([len(indices) for indices in wanted])
        by_query = list(zip(wanted, np.split(scores, ends[:-1]), strict=True))
        ordered = {
            name: [self._ordered(found, *by_query[q]) for q, found in enumerate(ranking)]
            for name, ranking in rankings.items()
        }
        return Reranked(ordered, len(pairs), len(pairs) - len(readable), truncated)

    def query_ms(self, ranking: Ranking, queries: Sequence[str], documents: Sequence[str]) -> float:
        """Time of putting the best of a query's documents into order; see `median_ms`."""
        found = dict(zip(queries, ranking, strict=True))

        def order(query: str) -> None:
            best = (documents[n] for n in found[query][: self.depth].tolist())
            self._scored([(query, text) for text in best if not (is_blank(query) or is_blank(text))])

        return median_ms(order, queries)

    def _scored(self, pairs: Sequence[Pair]) -> RerankScores:
        try:
            return self.reranker.score_pairs(pairs, max_length=self.max_length)
        except NoRoomError as error:
            message = (
                f"the query {pairs[error.index][0]!r} has {error.tokens} tokens, which leave no room for a document"
            )
            raise InputError(f"{message} in {error.max_length}; raise --max-length") from error

    def _ordered(self, found: Indices, scored: Indices, scores: FloatArray) -> Indices:
        best = found[: self.depth]
        order = np.argsort(-scores[np.searchsorted(scored, best)], kind="stable")
        return np.concatenate([best[order], found[self.depth :]])
