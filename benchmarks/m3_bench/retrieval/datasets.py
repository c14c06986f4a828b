"""Labelled datasets on disk: documents, queries, and which documents are relevant for which query."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from pydantic import AliasChoices, Field

from m3_bench.documents import DatasetFacts
from m3_bench.errors import DatasetError
from m3_bench.retrieval import LAYOUTS
from m3_bench.retrieval.finetune import read_finetune
from m3_bench.retrieval.lines import Identifier, Record, cells_of, digest_of_files, lines_of, parsed, records_of
from m3_runtime.io.formats import Packing, packing_of

SPLITS = ("test", "dev", "train")
MIRACL_SPLITS = ("dev", "testA", "train")


class _Document(Record):
    id: Identifier = Field(validation_alias=AliasChoices("_id", "docid", "id"))
    title: str | None = None
    text: str


class _Query(Record):
    id: Identifier = Field(validation_alias=AliasChoices("_id", "id"))
    text: str


class _Passage(Record):
    docid: Identifier


class _MldrQuery(Record):
    query_id: Identifier
    query: str
    positive_passages: list[_Passage]


class _Question(Record):
    id: Identifier
    question: str


class _Paragraph(Record):
    context: str
    qas: list[_Question]


class _Article(Record):
    paragraphs: list[_Paragraph]


class _Squad(Record):
    data: list[_Article] = Field(description='expected SQuAD\'s {"data": [{"paragraphs": […]}, …]}')


@dataclass(frozen=True)
class Item:
    """A document or a query: its id in the dataset, and its text."""

    id: str
    text: str


@dataclass(frozen=True)
class Judgment:
    """A relevance label: `grade` above 0 is relevant. `where` is named in errors."""

    query_id: str
    document_id: str
    grade: int
    where: str


@dataclass(frozen=True)
class Labelled:
    """N documents and Q queries."""

    name: str  # the folder's or file's
    layout: str  # its files and keys
    sha256: str  # over the contents of the files that were read
    documents: tuple[Item, ...]  # in the order of the file, which breaks ties
    queries: tuple[Item, ...]  # those that have a relevant document, in the order of the file
    relevant: tuple[Mapping[int, int], ...]  # per query, grade (above 0) by the document's index in `documents`
    notes: tuple[str, ...] = ()  # what was left out

    @property
    def facts(self) -> DatasetFacts:
        """What a result says about the dataset."""
        pairs = sum(map(len, self.relevant))
        return DatasetFacts(self.name, self.layout, self.sha256, len(self.queries), len(self.documents), pairs)


def open_dataset(
    path: Path, *, split: str | None = None, queries: int | None = None, documents: int | None = None
) -> Labelled:
    """Read and check a dataset, detect its layout by its files, and limit it if asked.

    The first `queries` are kept, and so many `documents`, or more if more are relevant.

    Raises:
        DatasetError: it is missing, of no known layout, malformed, or empty.
    """
    if not path.exists():
        raise DatasetError(f"there is no dataset at {str(path)!r}")
    found = _of_folder(path.resolve(), split) if path.is_dir() else _of_file(path)
    if split is not None and found.layout in ("squad", "finetune"):
        raise DatasetError(f"--split {split}: {str(path)!r} is of the layout {found.layout}, which has no splits")
    return _limited(found, queries, documents)


def _of_folder(folder: Path, split: str | None) -> Labelled:
    if (folder / "topics").is_dir() and (folder / "qrels").is_dir():
        return _miracl(folder, split)
    if _first_of(folder, "queries.jsonl"):
        return _beir(folder, split)
    if _first_of(folder, "corpus.jsonl"):
        return _mldr(folder, split)
    found = _files(folder, ".json") or _files(folder, ".jsonl")
    if not found:
        raise DatasetError(f"{str(folder)!r} is of no known layout. Expected one of:\n{LAYOUTS}")
    if len(found) > 1:
        names = ", ".join(str(file) for file in found[:8])
        raise DatasetError(f"{str(folder)!r} is a folder with {len(found)} datasets; name one of them: {names}")
    return _of_file(found[0])


def _of_file(path: Path) -> Labelled:
    return _finetune(path) if _unpacked_name(path).endswith(".jsonl") else _squad(path)


def _unpacked_name(path: Path) -> str:
    """A file's name without the ending that says how it is compressed."""
    return path.name.removesuffix(packing_of(path.name) or "")


def _first_of(folder: Path, *names: str) -> Path | None:
    """The first of these files that a folder has, plain or compressed."""
    candidates = (folder / (name + end) for name in names for end in ("", *Packing))
    return next((path for path in candidates if path.is_file()), None)


def _files(folder: Path, ending: str) -> list[Path]:
    return sorted(path for end in ("", *Packing) for path in folder.glob(f"*{ending}{end}"))


def _beir(folder: Path, split: str | None) -> Labelled:
    """queries.jsonl holds the queries of all splits, so those without a label in this one are not meant."""
    corpus, queries = _first_of(folder, "corpus.jsonl"), _first_of(folder, "queries.jsonl")
    labels = _first_of(folder / "qrels", *(f"{name}.tsv" for name in ((split,) if split else SPLITS)))
    if corpus is None or queries is None or labels is None:
        wanted = f"corpus.jsonl, queries.jsonl and qrels/{split or 'test'}.tsv"
        raise DatasetError(f"{str(folder)!r} is not BEIR's layout: expected {wanted}")
    judgments = _judgments(labels, ("query-id", "corpus-id", "score"), "\t")
    asked = {judgment.query_id for judgment in judgments}
    every_query = [Item(record.id, record.text) for record in records_of(_Query, queries)]
    if not judgments:
        raise DatasetError(f"{str(labels)!r} has no labels; expected a query, a document and a score on each line")
    meant = [query for query in every_query if query.id in asked] or every_query
    others = len(every_query) - len(meant)
    notes = (f"queries without a label in {labels.name}, which were left out: {others}",) if others else ()
    return _checked("beir", folder.name, (corpus, queries, labels), _documents(corpus), meant, judgments, notes)


def _documents(corpus: Path) -> Iterator[Item]:
    """The documents of a corpus file; a title stands before the text."""
    for record in records_of(_Document, corpus):
        yield Item(record.id, f"{record.title or ''} {record.text}".strip())


def _judgments(labels: Path, columns: Sequence[str], separator: str | None) -> list[Judgment]:
    """The labels of a table whose first column is the query and whose last two are document and grade."""
    found = []
    for number, (where, cells) in enumerate(cells_of(labels, columns, separator)):
        try:
            found.append(Judgment(cells[0], cells[-2], int(cells[-1]), where))
        except ValueError as error:
            if number == 0 and cells[-1].strip() == columns[-1]:
                continue  # the table's head
            raise DatasetError(f"{where}: the score must be a whole number, got {cells[-1]!r}") from error
    return found


def _miracl(folder: Path, split: str | None) -> Labelled:
    """miracl-v1.0-LANG: topics/ and qrels/; docs-*.jsonl are in it or in miracl-corpus-v1.0-LANG beside it."""
    wanted = (split,) if split else MIRACL_SPLITS

    def of_split(part: str) -> Path | None:
        named = {_unpacked_name(path): path for path in _files(folder / part, ".tsv")}
        return next((named[name] for one in wanted for name in named if name.endswith(f"-{one}.tsv")), None)

    beside = folder.with_name(folder.name.replace("miracl-", "miracl-corpus-", 1))
    corpora = ([path for path in _files(at, ".jsonl") if path.name.startswith("docs-")] for at in (folder, beside))
    corpus = sorted(next(filter(None, corpora), []), key=lambda path: (len(path.name), path.name))  # 10 after 9
    topics, labels = of_split("topics"), of_split("qrels")
    if topics is None or labels is None or not corpus:
        raise DatasetError(
            f"{str(folder)!r} is not MIRACL's layout: expected topics/*-{wanted[0]}.tsv, qrels/*-{wanted[0]}.tsv, "
            f"and docs-*.jsonl[.gz] in it or in {beside.name!r} beside it"
        )
    queries = (Item(*cells) for _, cells in cells_of(topics, ("id", "query")))
    judgments = _judgments(labels, ("query id", "Q0", "document id", "grade"), None)
    documents = chain.from_iterable(map(_documents, corpus))
    return _checked("miracl", folder.name, (*corpus, topics, labels), documents, queries, judgments)


def _mldr(folder: Path, split: str | None) -> Labelled:
    """mldr-v1.0-LANG: corpus.jsonl, and SPLIT.jsonl with each query's passages."""
    names = (split,) if split else SPLITS
    corpus, asked = _first_of(folder, "corpus.jsonl"), _first_of(folder, *(f"{name}.jsonl" for name in names))
    if corpus is None or asked is None:
        raise DatasetError(f"{str(folder)!r} is not MLDR's layout: expected corpus.jsonl and {names[0]}.jsonl")
    rows = list(records_of(_MldrQuery, asked))
    queries = [Item(row.query_id, row.query) for row in rows]
    judgments = [Judgment(row.query_id, one.docid, 1, str(asked)) for row in rows for one in row.positive_passages]
    return _checked("mldr", folder.name, (corpus, asked), _documents(corpus), queries, judgments)


def _finetune(path: Path) -> Labelled:
    """All passages of a fine-tuning file as the documents; a query's positives are relevant."""
    file = read_finetune(path)
    passages = dict.fromkeys(text for example in file.examples for text in example.passages)
    ids = {text: f"p{number}" for number, text in enumerate(passages)}
    return _checked(
        layout="finetune",
        name=path.name,
        files=(path,),
        documents=[Item(identifier, text) for text, identifier in ids.items()],
        queries=[Item(str(example.line), example.query) for example in file.examples],
        judgments=[
            Judgment(str(example.line), ids[text], 1, f"{path}, line {example.line}")
            for example in file.examples
            for text in dict.fromkeys(example.positives)
        ],
        notes=tuple(f"line {bad.line} was left out: {bad.reason}" for bad in file.bad_lines),
    )


def _squad(path: Path) -> Labelled:
    """A question's document is its paragraph; paragraphs of the same text are one document."""
    found = parsed(_Squad, "\n".join(line for _, line in lines_of(path)), f"{path}: ")
    paragraphs = [one for article in found.data for one in article.paragraphs]
    ids: dict[str, str] = {}
    for number, one in enumerate(paragraphs):
        ids.setdefault(one.context, f"p{number}")
    same = len(paragraphs) - len(ids)
    return _checked(
        layout="squad",
        name=path.name,
        files=(path,),
        documents=[Item(identifier, text) for text, identifier in ids.items()],
        queries=[Item(asked.id, asked.question) for one in paragraphs for asked in one.qas],
        judgments=[
            Judgment(asked.id, ids[one.context], 1, f"{path}: {asked.id}") for one in paragraphs for asked in one.qas
        ],
        notes=(f"{same} paragraphs have the text of an earlier one and are one document with it",) if same else (),
    )


def _checked(
    layout: str,
    name: str,
    files: Sequence[Path],
    documents: Iterable[Item],
    queries: Iterable[Item],
    judgments: Sequence[Judgment],
    notes: tuple[str, ...] = (),
) -> Labelled:
    """The dataset, if it is one; queries without a relevant document cannot be measured and are left out."""
    documents, queries = tuple(documents), tuple(queries)
    document_index, query_index = (_indices(documents, "document", name), _indices(queries, "query", name))
    _refuse_unknown([(j.document_id, j.where) for j in judgments], document_index, "document")
    _refuse_unknown([(j.query_id, j.where) for j in judgments], query_index, "query")
    relevant: list[dict[int, int]] = [{} for _ in queries]
    grades_of: dict[tuple[str, str], int] = {}
    for judgment in judgments:
        pair = judgment.query_id, judgment.document_id
        if grades_of.setdefault(pair, judgment.grade) != judgment.grade:
            raise DatasetError(
                f"{judgment.where}: the query {pair[0]!r} and the document {pair[1]!r} have the grade {judgment.grade} "
                f"here and {grades_of[pair]} in a line before; leave one"
            )
        if judgment.grade > 0:
            relevant[query_index[judgment.query_id]][document_index[judgment.document_id]] = judgment.grade
    kept = [number for number, grades in enumerate(relevant) if grades]
    if not kept:
        raise DatasetError(f"{name}: none of its {len(queries)} queries has a relevant document")
    left_out = len(queries) - len(kept)
    return Labelled(
        name=name,
        layout=layout,
        sha256=digest_of_files(files),
        documents=documents,
        queries=tuple(queries[number] for number in kept),
        relevant=tuple(relevant[number] for number in kept),
        notes=notes + ((f"queries without a relevant document, which were left out: {left_out}",) if left_out else ()),
    )


def _indices(items: Sequence[Item], what: str, name: str) -> Mapping[str, int]:
    if not items:
        plural = "documents" if what == "document" else "queries"
        raise DatasetError(f"{name} has no {plural}; there is nothing to search")
    indices: dict[str, int] = {}
    for number, item in enumerate(items):
        if (first := indices.setdefault(item.id, number)) != number:
            raise DatasetError(
                f"{name}: the {what} id {item.id!r} is there twice, as number {first + 1} and {number + 1}"
            )
    return indices


def _refuse_unknown(labels: Sequence[tuple[str, str]], known: Mapping[str, int], what: str) -> None:
    if unknown := [(one, where) for one, where in labels if one not in known]:
        first, where = unknown[0]
        raise DatasetError(
            f"{where} names the {what} {first!r}, which the dataset does not have, and so do {len(unknown)} "
            f"of {len(labels)} labels in all; are labels and texts of the same split and language, and complete?"
        )


def _limited(data: Labelled, queries: int | None, documents: int | None) -> Labelled:
    """The first queries, and the first documents together with everything that is relevant for those queries."""
    if queries is not None and queries < len(data.queries):
        notes = (*data.notes, f"only the first {queries} of {len(data.queries)} queries")
        data = replace(data, queries=data.queries[:queries], relevant=data.relevant[:queries], notes=notes)
    if documents is None or documents >= len(data.documents):
        return data
    needed = {number for grades in data.relevant for number in grades}
    others = [number for number in range(len(data.documents)) if number not in needed]
    kept = sorted([*needed, *others[: max(0, documents - len(needed))]])
    new = {old: number for number, old in enumerate(kept)}
    note = f"only {len(kept)} of {len(data.documents)} documents, the relevant ones among them: searching is easier"
    return replace(
        data,
        documents=tuple(data.documents[number] for number in kept),
        relevant=tuple({new[number]: grade for number, grade in grades.items()} for grades in data.relevant),
        notes=(*data.notes, note),
    )
