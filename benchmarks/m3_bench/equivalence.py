"""Whether two indexes give the same answers: overlap of what they find, order and scores of what both find."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from m3_bench.documents import Equivalence, Ranked, Rankings
from m3_bench.errors import DocumentError
from m3_bench.recording import digest_of
from m3_bench.retrieval.indexes import HeldIndex, Index, Queries
from m3_bench.stats import Difference, paired_difference
from m3_runtime.bundle.space import full_space_of
from m3_runtime.errors import InputError

FEW_QUERIES = 50
"""Fewer queries say little about an overlap; MLPerf Inference asks for as many."""
_SAME_IDS = (
    'give a text the same "id" in both: m3-runtime bulk and m3-bench record keep that of a JSONL line, a collection '
    "that of a Passage"
)


@dataclass(frozen=True)
class Agreement:
    """How far two indexes agree by one method."""

    method: str
    overlap: Difference  # share of the documents that both find, and its 95 % interval over queries
    unchanged: float  # share of the queries for which both find the same documents
    order: float | None  # mean Kendall's tau of the documents that both find; None where no query has two
    drift_mean: float | None  # mean absolute difference of the scores of these; None without scores
    drift_max: float | None  # the largest
    unfound: int  # queries for which neither finds any document; their overlap is 1


@dataclass(frozen=True)
class Side:
    """What is compared: an index as the user names it, or its rankings from a file, whose index is None.

    The rankings of an index rank nothing until it is `searched`.
    """

    place: str
    rankings: Rankings
    index: Index | None = None

    @classmethod
    def of(cls, place: str, index: Index, queries: Queries, depth: int) -> "Side":
        """An index that was opened."""
        return cls(
            place,
            Rankings(
                index=index.name,
                space_id=index.space_id,
                documents=index.documents,
                ids_sha256=index.ids_sha256,
                queries=len(queries.texts),
                queries_sha256=digest_of(queries.texts),
                depth=depth,
                ranked=(),
            ),
            index,
        )

    def searched(self, queries: Queries) -> "Side":
        """With what the index finds, if it is one."""
        if self.index is None:
            return self
        return replace(self, rankings=replace(self.rankings, ranked=self.index.ranked(queries, self.rankings.depth)))

    @property
    def ids(self) -> tuple[str, ...]:
        """All documents' ids, where they are in memory."""
        return self.index.ids if isinstance(self.index, HeldIndex) else ()


def check_comparable(first: Side, second: Side) -> None:
    """Refuse two sides whose rankings do not compare, before anything is searched.

    Raises:
        InputError: they are of other vector spaces, queries, depths or documents.
    """
    a, b = first.rankings, second.rankings
    queries = f"{a.queries} and {b.queries}"
    if a.queries == b.queries:
        queries = f"{a.queries} each, but other texts or another order"
    ids, other_ids = a.ids_sha256 or b.ids_sha256, b.ids_sha256 or a.ids_sha256
    for what, one, other, values, remedy in (
        (
            "vector spaces",
            full_space_of(a.space_id),
            full_space_of(b.space_id),
            f"{a.space_id} and {b.space_id}",
            "they come from other checkpoints and do not compare; fill or record one again from the other's",
        ),
        ("queries", a.queries_sha256, b.queries_sha256, queries, "search both with the same --queries FILE"),
        ("depths", a.depth, b.depth, f"{a.depth} and {b.depth}", "search both with the same --depth"),
        (
            "numbers of documents",
            a.documents,
            b.documents,
            f"{a.documents} and {b.documents}",
            "fill both with the same documents",
        ),
        (
            "ids of documents",
            ids,
            other_ids,
            f"digests {ids[:16]} and {other_ids[:16]}",
            _SAME_IDS,
        ),
    ):
        if one != other:
            strangers = _strangers(first, second) if what.endswith("documents") else ""
            raise InputError(
                f"{first.place!r} and {second.place!r} have different {what}: {values}{strangers}; {remedy}"
            )


def _strangers(first: Side, second: Side) -> str:
    """The lowest id that only one side has, of each; of rankings from a file only those that they rank are known."""
    found = ""
    for one, other in ((first, second), (second, first)):
        known = one.ids or [name for method in one.rankings.ranked for ids in method.ids for name in ids]
        if other.ids and (only := set(known) - set(other.ids)):
            found += f", {min(only)!r} only in {one.place!r}"
    return found


def check_found(first: Side, second: Side) -> None:
    """Refuse rankings that say nothing of each other, once both are there.

    Raises:
        InputError: no method is in both, none of these finds anything, or they name other documents.
    """
    methods = [{one.method: one for one in side.rankings.ranked} for side in (first, second)]
    shared = [name for name in methods[0] if name in methods[1]]
    places = f"{first.place!r} and {second.place!r}"
    if not shared:
        one, other = (", ".join(names) or "none" for names in methods)
        raise InputError(f"{places} share no method: {one}; {other}")
    ranked = [{name for method in shared for ids in of[method].ids for name in ids} for of in methods]
    if not any(ranked):
        raise InputError(f"{places} find nothing, for not one query; are there vectors in them?")
    are_known = bool(first.rankings.ids_sha256 and second.rankings.ids_sha256)
    strangers = _strangers(first, second)
    if strangers or (all(ranked) and not ranked[0] & ranked[1] and not are_known):
        strangers = strangers or f", {min(ranked[0])!r} in the one, {min(ranked[1])!r} in the other"
        raise InputError(f"{places} have different ids of documents: {strangers[2:]}; {_SAME_IDS}")


def check_whole(side: Side) -> None:
    """Refuse rankings that say nothing, or not what they should.

    Raises:
        InputError: the index has no more documents than are looked for.
        DocumentError: they do not have the ids and scores that they say.
    """
    place, rankings = side.place, side.rankings
    if rankings.documents <= rankings.depth:
        what = f"{place!r} has {rankings.documents} documents, and the best {rankings.depth} of them are all"
        raise InputError(f"{what}: search with a lower --depth, or in an index of more documents")
    if rankings.queries < 1:
        raise _changed(place, "there are no queries")
    if rankings.depth < 1:
        raise _changed(place, f"they are the best {rankings.depth} of each query")
    names = [one.method for one in rankings.ranked]
    if len(set(names)) < len(names):
        raise _changed(place, "a method is there twice")
    for one in rankings.ranked:
        if len(one.ids) != rankings.queries or len(one.scores) not in (0, rankings.queries):
            raise _changed(
                place, f"{one.method} has not one ranking for each query, of which there are {rankings.queries}"
            )
        if any(len(set(ids)) < len(ids) or len(ids) > rankings.depth for ids in one.ids):
            raise _changed(place, f"{one.method} ranks a document twice, or more than {rankings.depth}")
        if any(len(ids) != len(scores) for ids, scores in zip(one.ids, one.scores, strict=False)):
            raise _changed(place, f"{one.method} has not a score for each document")


def _changed(place: str, what: str) -> DocumentError:
    return DocumentError(f"the rankings of {place!r}: {what}; the file was changed, so search again")


def lacking(one: Rankings, other: Rankings) -> tuple[str, ...]:
    """The methods that are only in the other's rankings, and are not compared."""
    own = {ranked.method for ranked in one.ranked}
    return tuple(ranked.method for ranked in other.ranked if ranked.method not in own)


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
        unfound=sum(not these and not those for these, those in zip(one.ids, other.ids, strict=True)),
    )


def overlap(these: Sequence[str], those: Sequence[str]) -> float:
    """The share of documents that two rankings have in common; 1 where neither finds any.

    >>> overlap(["a", "b"], ["b", "c"]), overlap([], []), overlap(["a"], [])
    (0.5, 1.0, 0.0)
    """
    most = max(len(these), len(those))
    return len(set(these) & set(those)) / most if most else 1.0
