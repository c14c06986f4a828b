"""What a search finds in a store: ranked by the store, fused by ranks, ordered anew by ColBERT."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError
from m3_runtime.integrations.passages import Mode, Passage, check_counts, checked_mode

RANK_CONSTANT = 60
"""Of reciprocal rank fusion, as in Cormack, Clarke and Büttcher (2009), and in most databases."""


@dataclass(frozen=True)
class Hit:
    """A passage that was found; `score` is the ranking's, or ColBERT's after reranking."""

    passage: Passage
    score: float


Ranking = Callable[[Encoding, Head, int], list[Hit]]
"""A store's ranking of its passages: the query, by which head, and how many at most."""


def find(
    encoder: M3Encoder,
    rank: Ranking,
    query: str,
    *,
    mode: Mode | str,
    limit: int,
    candidates: int,
    heads: Sequence[Head] = (Head.DENSE, Head.SPARSE),
    rerank: Callable[[Encoding, list[Hit]], list[Hit]] | None = None,
) -> list[Hit]:
    """Search a store that ranks by one head at a time.

    Args:
        encoder: whose vectors the store holds.
        rank: the store's ranking.
        query: the question.
        mode: how to search.
        limit: how many passages at most.
        candidates: how many of each ranking are fused, and how many are ordered anew.
        heads: by which the store ranks.
        rerank: orders hits by ColBERT; None encodes their texts anew.

    Raises:
        InputError: an argument is not what it must be, or the store does not rank by such a head.
    """
    chosen = checked_mode(mode)
    check_counts(limit, candidates)
    missing = chosen.heads - set(heads)
    if chosen is not Mode.RERANKED and missing:
        names = ", ".join(sorted(head.value for head in missing))
        others = ", ".join(other for other in Mode if other is Mode.RERANKED or other.heads <= set(heads))
        raise InputError(f"mode {chosen.value!r}: this store does not rank by {names}; use one of {others}")
    if chosen not in (Mode.HYBRID, Mode.RERANKED):
        head = Head(chosen.value)
        return rank(encoder.encode_heads([query], {head}).logged(), head, limit)
    fused_heads = [head for head in (Head.DENSE, Head.SPARSE) if head in heads]
    question = encoder.encode_heads([query], chosen.heads & {*fused_heads, Head.COLBERT}).logged()
    most = max(limit, candidates)
    found = fused([rank(question, head, most) for head in fused_heads])
    if chosen is Mode.HYBRID:
        return found[:limit]
    ordered = rerank(question, found[:most]) if rerank else by_colbert(encoder, question, found[:most])
    return ordered[:limit]


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
    """The same hits in ColBERT's order and with its scores; their texts are encoded anew.

    Args:
        encoder: of the question.
        question: a list of one query, with its ColBERT rows.
        hits: any number of them.
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
