"""Whether two indexes give the same answers: overlap of what they find, order and scores of what both find."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m3_bench.documents import Equivalence, Ranked, Rankings
from m3_bench.errors import DocumentError
from m3_bench.recording import digest_of
from m3_bench.retrieval.indexes import Index, Queries
from m3_bench.stats import Difference, paired_difference
from m3_runtime.bundle.space import full_space_of
from m3_runtime.errors import InputError

FEW_QUERIES = 50
"""Fewer queries say little about an overlap; MLPerf Inference asks for as many."""


@dataclass(frozen=True)
class Agreement:
    """How far two indexes agree by one method."""

    method: str
    overlap: Difference  # share of the documents that both find, and its 95 % interval over queries
    unchanged: float  # share of the queries for which both find the same documents
    order: float | None  # mean Kendall's tau of the documents that both find; None where no query has two
    drift_mean: float | None  # mean absolute difference of the scores of these; None without scores
    drift_max: float | None  # the largest


def rankings_of(index: Index, queries: Queries, depth: int) -> Rankings:
    """Search an index."""
    return Rankings(
        index=index.name,
        space_id=index.space_id,
        documents=index.documents,
        ids_sha256=index.ids_sha256,
        queries=len(queries.texts),
        queries_sha256=digest_of(queries.texts),
        depth=depth,
        ranked=index.ranked(queries, depth),
    )


def check_comparable(found: Equivalence) -> None:
    """Refuse indexes whose rankings do not compare.

    Raises:
        InputError: they are of other vector spaces, queries, depths or documents, or share no method.
        DocumentError: one does not have the ids and scores that it says.
    """
    a, b = found.first, found.second
    check_whole(a)
    check_whole(b)
    for what, one, other in (
        ("vector spaces", full_space_of(a.space_id), full_space_of(b.space_id)),
        ("queries", a.queries_sha256, b.queries_sha256),
        ("depths", a.depth, b.depth),
        ("numbers of documents", a.documents, b.documents),
        ("ids of documents", a.ids_sha256 or b.ids_sha256, b.ids_sha256 or a.ids_sha256),
    ):
        if one != other:
            shown = [str(value)[:20] for value in (one, other)]
            raise InputError(f"{a.index!r} and {b.index!r} have different {what}: {shown[0]} and {shown[1]}")
    if not agreements(found):
        raise InputError(f"{a.index!r} and {b.index!r} share no method: {_methods(a)}; {_methods(b)}")


def check_whole(rankings: Rankings) -> None:
    """Refuse rankings that say nothing, or not what they should.

    Raises:
        InputError: the index has no more documents than are looked for.
        DocumentError: they do not have the ids and scores that they say.
    """
    if rankings.documents <= rankings.depth:
        what = f"{rankings.index} has {rankings.documents} documents, and the best {rankings.depth} of them are all"
        raise InputError(f"{what}: search again with a lower --depth, or in an index of more documents")
    if rankings.queries < 1:
        raise _changed(rankings, "there are no queries")
    names = [one.method for one in rankings.ranked]
    if len(set(names)) < len(names):
        raise _changed(rankings, "a method is there twice")
    for one in rankings.ranked:
        if len(one.ids) != rankings.queries or len(one.scores) not in (0, rankings.queries):
            raise _changed(rankings, f"{one.method} has not one ranking for each of {rankings.queries} queries")
        if any(len(set(ids)) < len(ids) or len(ids) > rankings.depth for ids in one.ids):
            raise _changed(rankings, f"{one.method} ranks a document twice, or more than {rankings.depth}")
        if any(len(ids) != len(scores) for ids, scores in zip(one.ids, one.scores, strict=False)):
            raise _changed(rankings, f"{one.method} has not a score for each document")


def _changed(rankings: Rankings, what: str) -> DocumentError:
    return DocumentError(f"the rankings of {rankings.index!r}: {what}; the file was changed, so search again")


def _methods(rankings: Rankings) -> str:
    return ", ".join(one.method for one in rankings.ranked)


def agreements(found: Equivalence) -> list[Agreement]:
    """Of every method that both have."""
    others = {one.method: one for one in found.second.ranked}
    pairs = [(one, others[one.method]) for one in found.first.ranked if one.method in others]
    return [_agreement(one, other) for one, other in pairs]


def _agreement(one: Ranked, other: Ranked) -> Agreement:
    from scipy.stats import kendalltau

    overlaps, orders, drifts = list[float](), list[float](), list[float]()
    for query, (these, those) in enumerate(zip(one.ids, other.ids, strict=True)):
        overlaps.append(overlap(these, those))
        shared = [name for name in these if name in set(those)]
        if len(shared) > 1:
            orders.append(
                float(kendalltau([these.index(n) for n in shared], [those.index(n) for n in shared]).statistic)
            )
        if one.scores and other.scores:
            a, b = (dict(zip(r.ids[query], r.scores[query], strict=True)) for r in (one, other))
            drifts += [abs(a[name] - b[name]) for name in shared]
    return Agreement(
        method=one.method,
        overlap=paired_difference(overlaps, [0.0] * len(overlaps)),
        unchanged=float(np.mean([value == 1 for value in overlaps])),
        order=float(np.mean(orders)) if orders else None,
        drift_mean=float(np.mean(drifts)) if drifts else None,
        drift_max=max(drifts, default=None),
    )


def overlap(these: Sequence[str], those: Sequence[str]) -> float:
    """The share of documents that two rankings have in common; 1 where neither finds any.

    >>> overlap(["a", "b"], ["b", "c"]), overlap([], []), overlap(["a"], [])
    (0.5, 1.0, 0.0)
    """
    most = max(len(these), len(those))
    return len(set(these) & set(those)) / most if most else 1.0
