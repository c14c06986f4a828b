"""What a search finds in a store: ranked by the store, fused by ranks, reordered by ColBERT."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, TypeVar

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError
from m3_runtime.integrations.passages import Mode, Passage, PassageStore, check_counts
from m3_runtime.sequences import member

Filter = TypeVar("Filter")
RANK_CONSTANT = 60
"""Of reciprocal rank fusion, as in Cormack, Clarke and Büttcher (2009), and in most databases."""


@dataclass(frozen=True)
class Hit:
    """A passage that was found; `score` is the ranking's, or ColBERT's after reranking."""

    passage: Passage
    score: float


class RankingStore(PassageStore, Generic[Filter]):
    """A store that ranks its passages by one head at a time. Rankings are fused and reordered here.

    Attributes:
        candidates: what `search` takes for None.
    """

    candidates: ClassVar[int] = 50

    def search(
        self,
        query: str,
        *,
        limit: int = 10,
        mode: Mode | str = Mode.HYBRID,
        candidates: int | None = None,
        filter: Filter | None = None,
    ) -> list[Hit]:
        """The best passages, best first.

        Scores are products of the vectors (dense, sparse), the sum of 1 / (60 + rank) (hybrid), and
        `M3Encoder.colbert_score` (ColBERT, reranked). A query without lexical weights (an empty one, say) finds nothing
        by SPARSE, and HYBRID is dense alone. In a store without lexical weights RERANKED takes the dense ranking.

        COLBERT alone needs a store that keeps ColBERT rows; without them RERANKED encodes the candidates' texts again.
        `candidates` are how many of each ranking HYBRID fuses, and how many RERANKED reorders; None is the class's. The
        class says what its `filter` is.

        Raises:
            InputError: an argument is not what it must be, the store does not rank by such a head, or it cannot be
                searched now.
        """
        chosen = member(Mode, mode, "mode")
        wanted = self.candidates if candidates is None else candidates
        check_counts(limit, wanted)
        missing = chosen.heads - set(self._heads)
        if chosen is not Mode.RERANKED and missing:
            names = ", ".join(sorted(head.value for head in missing))
            others = ", ".join(other for other in Mode if other is Mode.RERANKED or other.heads <= set(self._heads))
            raise InputError(f"mode {chosen.value!r}: this store does not rank by {names}; use one of {others}")
        if chosen not in (Mode.HYBRID, Mode.RERANKED):
            head = Head(chosen.value)
            return self._rank(self._encoder.encode_heads([query], {head}).logged(), head, limit, filter)
        fused_heads = [head for head in (Head.DENSE, Head.SPARSE) if head in self._heads]
        question = self._encoder.encode_heads([query], chosen.heads & {*fused_heads, Head.COLBERT}).logged()
        most = max(limit, wanted)
        found = fused([self._rank(question, head, most, filter) for head in fused_heads])
        return (found if chosen is Mode.HYBRID else self._reranked(question, found[:most]))[:limit]

    @abstractmethod
    def _rank(self, question: Encoding, head: Head, most: int, filter: Filter | None) -> list[Hit]:
        """The best passages for a list of one query, by one head."""

    def _reranked(self, question: Encoding, hits: list[Hit]) -> list[Hit]:
        return by_colbert(self._encoder, question, hits)


def fused(rankings: Sequence[Sequence[Hit]]) -> list[Hit]:
    """Rankings fused by ranks (RRF): a passage's score is the sum of 1 / (60 + rank) over those that have it.

    >>> a, b, c = (Hit(Passage(name, ""), 1.0) for name in "abc")
    >>> [hit.passage.id for hit in fused([[a, b], [b, c]])]
    ['b', 'a', 'c']
    """
    scores: dict[int | str, float] = defaultdict(float)
    hits = {hit.passage.id: hit for ranking in rankings for hit in ranking}
    for ranking in rankings:
        for place, hit in enumerate(ranking, 1):
            scores[hit.passage.id] += 1 / (RANK_CONSTANT + place)
    return [replace(hits[name], score=scores[name]) for name in sorted(scores, key=lambda name: -scores[name])]


def by_colbert(encoder: M3Encoder, question: Encoding, hits: Sequence[Hit]) -> list[Hit]:
    """The same hits in ColBERT's order and with its scores; their texts are encoded again.

    `question` is a list of one query, with its ColBERT rows.
    """
    if not hits:
        return []
    texts = [hit.passage.text for hit in hits]
    rows = encoder.encode_heads(texts, {Head.COLBERT}).colbert_vecs
    assert rows is not None and question.colbert_vecs is not None
    query = question.colbert_vecs[0]
    scored = [replace(h, score=encoder.colbert_score(query, r)) for h, r in zip(hits, rows, strict=True)]
    return sorted(scored, key=lambda hit: -hit.score)


def weights_of(encoding: Encoding, row: int) -> dict[int, float]:
    """One text's lexical weights: token id to weight."""
    assert encoding.sparse is not None
    ids, weights = encoding.sparse.row(row)
    return dict(zip(ids.tolist(), weights.tolist(), strict=True))
