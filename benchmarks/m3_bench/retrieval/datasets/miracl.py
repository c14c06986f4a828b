"""The layouts of MIRACL (topics and qrels as TSV) and of MLDR (each query with its passages, and a corpus)."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from m3_bench.errors import DatasetError
from m3_bench.retrieval.datasets.beir import CORPUS, documents_of, grade_of
from m3_bench.retrieval.datasets.files import Row, as_identifier, cells_of, digest_of, first_of, rows_of
from m3_bench.retrieval.datasets.labelled import Item, Judgment, Raw

TOPICS, QRELS = "topics", "qrels"
MIRACL_SPLITS = ("dev", "testA", "train")
MLDR_SPLITS = ("test", "dev", "train")


def read_miracl(folder: Path, split: str | None = None) -> Raw:
    """Read miracl-v1.0-LANG: topics/ and qrels/; docs-*.jsonl are in it or in miracl-corpus-v1.0-LANG beside.

    Raises:
        DatasetError: a file is missing or malformed.
    """
    folder = folder.resolve()
    wanted = (split,) if split else MIRACL_SPLITS
    topics, labels = _of_split(folder / TOPICS, wanted), _of_split(folder / QRELS, wanted)
    corpus = _miracl_corpus(folder)
    if topics is None or labels is None or not corpus:
        raise DatasetError(
            f"{str(folder)!r} is not MIRACL's layout: expected {TOPICS}/*-{wanted[0]}.tsv, {QRELS}/*-{wanted[0]}.tsv, "
            f"and docs-*.jsonl[.gz] in it or in {_beside(folder).name!r} beside it"
        )
    return Raw(
        name=folder.name,
        sha256=digest_of([*corpus, topics, labels]),
        documents=chain.from_iterable(documents_of(path) for path in corpus),
        queries=_topics(topics),
        judgments=_trec_judgments(labels),
    )


def read_mldr(folder: Path, split: str | None = None) -> Raw:
    """Read mldr-v1.0-LANG: corpus.jsonl and SPLIT.jsonl, gzipped or not.

    Raises:
        DatasetError: a file is missing or malformed.
    """
    names = (split,) if split else MLDR_SPLITS
    corpus, asked = first_of(folder, CORPUS), first_of(folder, *(f"{name}.jsonl" for name in names))
    if corpus is None or asked is None:
        raise DatasetError(f"{str(folder)!r} is not MLDR's layout: expected {CORPUS} and {names[0]}.jsonl")
    rows = list(rows_of(asked))
    return Raw(
        name=folder.resolve().name,
        sha256=digest_of([corpus, asked]),
        documents=documents_of(corpus),
        queries=[Item(row.identifier("query_id"), row.text("query")) for row in rows],
        judgments=chain.from_iterable(map(_positives, rows)),
    )


def _of_split(folder: Path, splits: Sequence[str]) -> Path | None:
    found = sorted(folder.glob("*.tsv")) + sorted(folder.glob("*.tsv.gz"))
    named = (path for split in splits for path in found if path.name.removesuffix(".gz").endswith(f"-{split}.tsv"))
    return next(named, None)


def _beside(folder: Path) -> Path:
    return folder.with_name(folder.name.replace("miracl-", "miracl-corpus-", 1))


def _miracl_corpus(folder: Path) -> Sequence[Path]:
    for place in (folder, folder / "corpus", _beside(folder)):
        if found := [*place.glob("docs-*.jsonl"), *place.glob("docs-*.jsonl.gz")]:
            return sorted(found, key=lambda path: (len(path.name), path.name))  # docs-10 after docs-9
    return ()


def _topics(path: Path) -> Iterator[Item]:
    for number, cells in cells_of(path):
        if len(cells) != 2:
            raise DatasetError(f"{path}, line {number}: expected id and query between a tab, got {len(cells)} cells")
        yield Item(cells[0], cells[1])


def _trec_judgments(path: Path) -> Iterator[Judgment]:
    for number, line in cells_of(path):
        where, cells = f"{path}, line {number}", "\t".join(line).split()
        if len(cells) != 4:
            raise DatasetError(f"{where}: expected query id, Q0, document id and grade, got {len(cells)} cells")
        yield Judgment(cells[0], cells[2], grade_of(cells[3], where), where)


def _positives(row: Row) -> Iterator[Judgment]:
    passages = row.values.get("positive_passages")
    if not isinstance(passages, list) or not all(isinstance(passage, dict) for passage in passages):
        raise DatasetError(f"{row.where}: 'positive_passages' must be a list of objects")
    for n, passage in enumerate(passages):
        document = as_identifier(passage.get("docid"), f"{row.where}: positive_passages[{n}].docid")
        yield Judgment(row.identifier("query_id"), document, 1, row.where)
