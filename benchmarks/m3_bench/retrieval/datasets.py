"""Labelled datasets on disk: documents, queries, and which documents are relevant for which query."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import Any

from m3_bench.documents import DatasetFacts
from m3_bench.errors import DatasetError
from m3_bench.retrieval.finetune import read_finetune
from m3_bench.retrieval.lines import Record, cells_of, digest_of_files, json_of, lines_of, records_of
from m3_runtime.io.formats import Packing, packing_of

SPLITS = ("test", "dev", "train")
MIRACL_SPLITS = ("dev", "testA", "train")


class Layout(StrEnum):
    """Files and keys of a dataset; AUTO looks."""

    AUTO = "auto"
    SQUAD = "squad"
    BEIR = "beir"
    MIRACL = "miracl"
    MLDR = "mldr"
    FINETUNE = "finetune"


EXPECTED = """\
  squad     a .json file: {"data": [{"paragraphs": [{"context": …, "qas": [{"id": …, "question": …}]}]}]}
  beir      a folder: corpus.jsonl (_id, text), queries.jsonl (_id, text), qrels/test.tsv (query, document, grade)
  miracl    a folder: topics/*-dev.tsv, qrels/*-dev.tsv, docs-*.jsonl in it or in miracl-corpus-… beside it
  mldr      a folder: corpus.jsonl (docid, text) and test.jsonl (query_id, query, positive_passages)
  finetune  a .jsonl file: {"query": …, "pos": […], "neg": […]} on each line"""


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


@dataclass(frozen=True)
class _Raw:
    """What a reader found, not yet checked."""

    name: str
    files: Sequence[Path]
    documents: Iterable[Item]
    queries: Iterable[Item]
    judgments: Iterable[Judgment]
    notes: tuple[str, ...] = ()


def open_dataset(
    path: Path,
    layout: Layout = Layout.AUTO,
    *,
    split: str | None = None,
    queries_from: Path | None = None,
    queries: int | None = None,
    documents: int | None = None,
) -> Labelled:
    """Read and check a dataset, and cut it if asked.

    Args:
        path: a file or folder.
        layout: AUTO looks.
        split: of BEIR, MIRACL and MLDR; None takes the usual one.
        queries_from: another SQuAD file whose questions are asked; None asks its own.
        queries: keep the first so many; None keeps all.
        documents: keep so many, more if more are relevant; None keeps all.

    Raises:
        DatasetError: it is missing, of no known layout, malformed, or empty.
    """
    if not path.exists():
        raise DatasetError(f"there is no dataset at {str(path)!r}")
    layout = detected(path) if layout is Layout.AUTO else layout
    if queries_from is not None and layout is not Layout.SQUAD:
        raise DatasetError(f"--queries-from is for SQuAD files, {str(path)!r} is of the {layout} layout")
    match layout:
        case Layout.BEIR:
            raw = _beir(path, split)
        case Layout.MIRACL:
            raw = _miracl(path.resolve(), split)
        case Layout.MLDR:
            raw = _mldr(path, split)
        case Layout.FINETUNE:
            raw = _finetune(_only_file(path, ".jsonl"))
        case _:
            raw = _squad(_only_file(path, ".json"), queries_from)
    return _limited(_checked(raw, layout), queries, documents)


def detected(path: Path) -> Layout:
    """The layout of a file or folder.

    Raises:
        DatasetError: none fits; what each expects is said.
    """
    layout = _of_folder(path) if path.is_dir() else _of_file(path)
    if layout is None:
        raise DatasetError(f"{str(path)!r} is of no known layout. Expected one of:\n{EXPECTED}")
    return layout


def _of_folder(folder: Path) -> Layout | None:
    corpus = _first_of(folder, "corpus.jsonl")
    if corpus and _first_of(folder, "queries.jsonl"):
        return Layout.BEIR
    if (folder / "topics").is_dir() and (folder / "qrels").is_dir():
        return Layout.MIRACL
    if corpus and _first_of(folder, *(f"{name}.jsonl" for name in SPLITS)):
        return Layout.MLDR
    if _files(folder, ".json"):
        return Layout.SQUAD
    return Layout.FINETUNE if _files(folder, ".jsonl") else None


def _of_file(path: Path) -> Layout | None:
    start = "".join(line for _, line in islice(lines_of(path), 1)).replace(" ", "")
    if _unpacked_name(path).endswith(".jsonl") or ('"query":' in start and '"pos":' in start):
        return Layout.FINETUNE
    return Layout.SQUAD if _is_squad(json_of(path)) else None


def _unpacked_name(path: Path) -> str:
    """A file's name without the ending that says how it is compressed."""
    return path.name.removesuffix(packing_of(path.name) or "")


def _first_of(folder: Path, *names: str) -> Path | None:
    """The first of these files that a folder has, plain or compressed."""
    candidates = (folder / (name + end) for name in names for end in ("", *Packing))
    return next((path for path in candidates if path.is_file()), None)


def _files(folder: Path, ending: str) -> list[Path]:
    return sorted(path for end in ("", *Packing) for path in folder.glob(f"*{ending}{end}"))


def _only_file(path: Path, ending: str) -> Path:
    found = _files(path, ending) if path.is_dir() else [path]
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(file) for file in found[:8]) or "none"
    raise DatasetError(f"{str(path)!r} is a folder with {len(found)} {ending} files; name one of them: {names}")


def _beir(folder: Path, split: str | None) -> _Raw:
    """queries.jsonl holds the queries of all splits, so those without a label in this one are not meant."""
    corpus, queries = _first_of(folder, "corpus.jsonl"), _first_of(folder, "queries.jsonl")
    labels = _first_of(folder / "qrels", *(f"{name}.tsv" for name in ((split,) if split else SPLITS)))
    if corpus is None or queries is None or labels is None:
        wanted = f"corpus.jsonl, queries.jsonl and qrels/{split or 'test'}.tsv"
        raise DatasetError(f"{str(folder)!r} is not BEIR's layout: expected {wanted}")
    judgments = _judgments(labels, ("query-id", "corpus-id", "score"), "\t")
    asked = {judgment.query_id for judgment in judgments}
    every_query = [Item(record.identifier("_id", "id"), record.text("text")) for record in records_of(queries)]
    meant = [query for query in every_query if query.id in asked]
    others = len(every_query) - len(meant)
    notes = (f"{others} queries have no label in {labels.name} and were left out",) if others else ()
    return _Raw(folder.resolve().name, (corpus, queries, labels), _documents(corpus), meant, judgments, notes)


def _documents(corpus: Path) -> Iterator[Item]:
    """The documents of a corpus file; a title stands before the text."""
    for record in records_of(corpus):
        text = f"{record.text('title', default='')} {record.text('text')}".strip()
        yield Item(record.identifier("_id", "docid", "id"), text)


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


def _miracl(folder: Path, split: str | None) -> _Raw:
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
    return _Raw(folder.name, (*corpus, topics, labels), documents, queries, judgments)


def _mldr(folder: Path, split: str | None) -> _Raw:
    """mldr-v1.0-LANG: corpus.jsonl, and SPLIT.jsonl with each query's passages."""
    names = (split,) if split else SPLITS
    corpus, asked = _first_of(folder, "corpus.jsonl"), _first_of(folder, *(f"{name}.jsonl" for name in names))
    if corpus is None or asked is None:
        raise DatasetError(f"{str(folder)!r} is not MLDR's layout: expected corpus.jsonl and {names[0]}.jsonl")
    queries, judgments = [], []
    for record in records_of(asked):
        query = Item(record.identifier("query_id"), record.text("query"))
        passages = record.records("positive_passages")
        judgments += [
            Judgment(query.id, one.identifier("docid"), 1, record.place.removesuffix(": ")) for one in passages
        ]
        queries.append(query)
    return _Raw(folder.resolve().name, (corpus, asked), _documents(corpus), queries, judgments)


def _finetune(path: Path) -> _Raw:
    """All passages of a fine-tuning file as the documents; a query's positives are relevant."""
    file = read_finetune(path)
    passages = dict.fromkeys(text for example in file.examples for text in example.passages)
    ids = {text: f"p{number}" for number, text in enumerate(passages)}
    return _Raw(
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


def _squad(path: Path, queries_from: Path | None) -> _Raw:
    """A question's document is its paragraph; paragraphs of the same text are one document.

    The questions may be another file's, which has the same paragraphs in another language.
    """
    paragraphs = _paragraphs(path)
    asked, name, files = paragraphs, path.name, [path]
    if queries_from is not None:
        asked, name, files = _paragraphs(queries_from), f"{queries_from.name} → {path.name}", [path, queries_from]
        ours, theirs = ([len(questions) for _, questions in one] for one in (paragraphs, asked))
        if ours != theirs:
            at = [*(a == b for a, b in zip(ours, theirs, strict=False)), False].index(False)
            raise DatasetError(
                f"{str(queries_from)!r} has {len(theirs)} paragraphs and {str(path)!r} {len(ours)}, which differ in "
                f"number of questions from paragraph {at} on; questions of one file fit the paragraphs of another only "
                "where both are the same text in two languages, in the same order"
            )
    ids: dict[str, str] = {}
    for number, (text, _) in enumerate(paragraphs):
        ids.setdefault(text, f"p{number}")
    pairs = [(query, ids[text]) for (text, _), (_, found) in zip(paragraphs, asked, strict=True) for query in found]
    same = len(paragraphs) - len(ids)
    return _Raw(
        name=name,
        files=files,
        documents=[Item(identifier, text) for text, identifier in ids.items()],
        queries=[query for query, _ in pairs],
        judgments=[Judgment(query.id, document, 1, f"{path}: {query.id}") for query, document in pairs],
        notes=(f"{same} paragraphs have the text of an earlier one and are one document with it",) if same else (),
    )


def _is_squad(value: Any) -> bool:
    articles = value.get("data") if isinstance(value, dict) else None
    return isinstance(articles, list) and all(isinstance(a, dict) and "paragraphs" in a for a in articles)


def _paragraphs(path: Path) -> list[tuple[str, list[Item]]]:
    """Text and questions of each paragraph."""
    value = json_of(path)
    if not _is_squad(value):
        raise DatasetError(f'{str(path)!r} is not SQuAD\'s layout: expected {{"data": [{{"paragraphs": […]}}, …]}}')
    paragraphs = (
        one for article in Record(f"{path}: ", value).records("data") for one in article.records("paragraphs")
    )
    return [
        (one.text("context"), [Item(asked.identifier("id"), asked.text("question")) for asked in one.records("qas")])
        for one in paragraphs
    ]


def _checked(raw: _Raw, layout: Layout) -> Labelled:
    """The dataset, if it is one; queries without a relevant document cannot be measured and are left out."""
    documents, queries, judgments = tuple(raw.documents), tuple(raw.queries), list(raw.judgments)
    places, numbers = _indices(documents, "document", raw.name), _indices(queries, "query", raw.name)
    _refuse_unknown([(j.document_id, j.where) for j in judgments], places, "document")
    _refuse_unknown([(j.query_id, j.where) for j in judgments], numbers, "query")
    relevant: list[dict[int, int]] = [{} for _ in queries]
    for judgment in judgments:
        if judgment.grade > 0:
            relevant[numbers[judgment.query_id]][places[judgment.document_id]] = judgment.grade
    kept = [number for number, grades in enumerate(relevant) if grades]
    if not kept:
        raise DatasetError(f"{raw.name}: none of its {len(queries)} queries has a relevant document")
    left_out = len(queries) - len(kept)
    return Labelled(
        name=raw.name,
        layout=layout.value,
        sha256=digest_of_files(raw.files),
        documents=documents,
        queries=tuple(queries[number] for number in kept),
        relevant=tuple(relevant[number] for number in kept),
        notes=raw.notes + ((f"{left_out} queries without a relevant document were left out",) if left_out else ()),
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
