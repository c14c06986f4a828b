"""A labelled dataset: documents, queries, and which documents are relevant for which query."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from m3_bench.documents import DatasetFacts
from m3_bench.errors import DatasetError


@dataclass(frozen=True)
class Item:
    """A document or a query: its id in the dataset, and its text."""

    id: str
    text: str


@dataclass(frozen=True)
class Judgment:
    """A line of relevance labels: `grade` above 0 is relevant. `where` is named in errors."""

    query_id: str
    document_id: str
    grade: int
    where: str


@dataclass(frozen=True)
class Raw:
    """What a layout's reader found, not yet checked: where it was read, and what lies there."""

    name: str
    sha256: str
    documents: Iterable[Item]
    queries: Iterable[Item]
    judgments: Iterable[Judgment]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """N documents and Q queries.

    Attributes:
        name: the folder's or file's.
        layout: how it lay on the disk.
        sha256: over the contents of the files that were read.
        documents: in the order of the file, which breaks ties.
        queries: those that have a relevant document, in the order of the file.
        relevant: per query, grade (above 0) by the document's place in `documents`.
        notes: what was left out.
    """

    name: str
    layout: str
    sha256: str
    documents: tuple[Item, ...]
    queries: tuple[Item, ...]
    relevant: tuple[Mapping[int, int], ...]
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> DatasetFacts:
        """What a result says about the dataset."""
        pairs = sum(map(len, self.relevant))
        return DatasetFacts(self.name, self.layout, self.sha256, len(self.queries), len(self.documents), pairs)


def checked(raw: Raw, layout: str) -> Labelled:
    """The dataset, if it is one.

    Queries without a relevant document cannot be measured: they are left out, and a note says how many.

    Raises:
        DatasetError: no documents or queries, an id twice, a judgment of an unknown document or query, or nothing is
            relevant for any query.
    """
    documents, queries = tuple(raw.documents), tuple(raw.queries)
    for items, what in ((documents, "documents"), (queries, "queries")):
        if not items:
            raise DatasetError(f"{raw.name} has no {what}; there is nothing to search")
    places, numbers = _places(documents, "document", raw.name), _places(queries, "query", raw.name)
    relevant = _relevant(raw, places, numbers)
    kept = [number for number, grades in enumerate(relevant) if grades]
    if not kept:
        raise DatasetError(f"{raw.name}: none of its {len(queries)} queries has a relevant document")
    left_out = len(queries) - len(kept)
    notes = raw.notes + ((f"{left_out} queries without a relevant document were left out",) if left_out else ())
    return Labelled(
        name=raw.name,
        layout=layout,
        sha256=raw.sha256,
        documents=documents,
        queries=tuple(queries[number] for number in kept),
        relevant=tuple(relevant[number] for number in kept),
        notes=notes,
    )


def limited(data: Labelled, queries: int | None, documents: int | None) -> Labelled:
    """The first queries, and the first documents together with everything that is relevant for those queries.

    Args:
        data: what is cut.
        queries: how many queries to keep; None keeps all.
        documents: how many documents to keep, more if more are relevant; None keeps all.
    """
    if queries is not None and queries < len(data.queries):
        note = f"only the first {queries} of {len(data.queries)} queries"
        data = replace(
            data, queries=data.queries[:queries], relevant=data.relevant[:queries], notes=(*data.notes, note)
        )
    if documents is not None and documents < len(data.documents):
        data = _with_documents(data, _kept_documents(data, documents))
    return data


def _kept_documents(data: Labelled, most: int) -> list[int]:
    needed = {place for grades in data.relevant for place in grades}
    others = [place for place in range(len(data.documents)) if place not in needed]
    return sorted([*needed, *others[: max(0, most - len(needed))]])


def _with_documents(data: Labelled, kept: Sequence[int]) -> Labelled:
    new_place = {old: new for new, old in enumerate(kept)}
    note = f"only {len(kept)} of {len(data.documents)} documents, the relevant ones among them: searching is easier"
    return replace(
        data,
        documents=tuple(data.documents[place] for place in kept),
        relevant=tuple({new_place[place]: grade for place, grade in grades.items()} for grades in data.relevant),
        notes=(*data.notes, note),
    )


def _places(items: Sequence[Item], what: str, name: str) -> Mapping[str, int]:
    places: dict[str, int] = {}
    for place, item in enumerate(items):
        if item.id in places:
            first = places[item.id] + 1
            raise DatasetError(f"{name}: the {what} id {item.id!r} is there twice, as number {first} and {place + 1}")
        places[item.id] = place
    return places


def _relevant(raw: Raw, places: Mapping[str, int], numbers: Mapping[str, int]) -> Sequence[Mapping[int, int]]:
    relevant: list[dict[int, int]] = [{} for _ in numbers]
    judgments = list(raw.judgments)
    _refuse_unknown([j for j in judgments if j.document_id not in places], "document", len(judgments))
    _refuse_unknown([j for j in judgments if j.query_id not in numbers], "query", len(judgments))
    for judgment in judgments:
        if judgment.grade > 0:
            relevant[numbers[judgment.query_id]][places[judgment.document_id]] = judgment.grade
    return relevant


def _refuse_unknown(unknown: Sequence[Judgment], what: str, of: int) -> None:
    if unknown:
        first = unknown[0].document_id if what == "document" else unknown[0].query_id
        raise DatasetError(
            f"{unknown[0].where} names the {what} {first!r}, which the dataset does not have, and so do {len(unknown)} "
            f"of {of} labels in all; are labels and texts of the same split and language, and complete?"
        )
