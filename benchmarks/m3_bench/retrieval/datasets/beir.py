"""BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv."""

from collections.abc import Iterator
from pathlib import Path

from m3_bench.errors import DatasetError
from m3_bench.retrieval.datasets.files import cells_of, digest_of, first_of, rows_of
from m3_bench.retrieval.datasets.labelled import Item, Judgment, Raw

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels"
SPLITS = ("test", "dev", "train")


def read_beir(folder: Path, split: str | None = None) -> Raw:
    """Read a folder; without a split the first of test, dev, train that has labels.

    queries.jsonl holds the queries of all splits, so those without a label in this one are not meant.

    Raises:
        DatasetError: a file is missing or malformed.
    """
    corpus, queries = first_of(folder, CORPUS), first_of(folder, QUERIES)
    labels = first_of(folder / QRELS, *(f"{name}.tsv" for name in ((split,) if split else SPLITS)))
    if corpus is None or queries is None or labels is None:
        wanted = f"{QRELS}/{split or 'test'}.tsv"
        raise DatasetError(f"{str(folder)!r} is not BEIR's layout: expected {CORPUS}, {QUERIES} and {wanted}")
    judgments = list(_judgments(labels))
    asked = {judgment.query_id for judgment in judgments}
    every_query = [Item(row.identifier("_id", "id"), row.text("text")) for row in rows_of(queries)]
    meant = [query for query in every_query if query.id in asked]
    others = len(every_query) - len(meant)
    note = f"{others} queries have no label in {labels.name} and were left out"
    return Raw(
        name=folder.resolve().name,
        sha256=digest_of([corpus, queries, labels]),
        documents=documents_of(corpus),
        queries=meant,
        judgments=judgments,
        notes=(note,) if others else (),
    )


def documents_of(corpus: Path) -> Iterator[Item]:
    """The documents of a corpus file; a title stands before the text.

    Raises:
        DatasetError: a line is malformed; it is named.
    """
    for row in rows_of(corpus):
        text = f"{row.text('title', default='')} {row.text('text')}".strip()
        yield Item(row.identifier("_id", "docid", "id"), text)


def _judgments(path: Path) -> Iterator[Judgment]:
    for number, cells in cells_of(path):
        where = f"{path}, line {number}"
        if number == 1 and cells[-1].strip() == "score":
            continue
        if len(cells) != 3:
            raise DatasetError(f"{where}: expected query-id, corpus-id and score between tabs, got {len(cells)} cells")
        yield Judgment(cells[0], cells[1], grade_of(cells[2], where), where)


def grade_of(cell: str, where: str) -> int:
    """A relevance grade.

    Raises:
        DatasetError: no whole number.
    """
    try:
        return int(cell)
    except ValueError as error:
        raise DatasetError(f"{where}: the score must be a whole number, got {cell!r}") from error
