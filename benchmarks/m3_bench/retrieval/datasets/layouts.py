"""Which layout a dataset has, and reading it."""

from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path

from m3_bench.errors import DatasetError
from m3_bench.retrieval.datasets import beir, miracl
from m3_bench.retrieval.datasets.files import first_of, json_of, lines_of
from m3_bench.retrieval.datasets.finetune import read_finetune_as_dataset
from m3_bench.retrieval.datasets.labelled import Labelled, Raw, checked, limited
from m3_bench.retrieval.datasets.squad import is_squad, read_squad


class Layout(StrEnum):
    """How a dataset lies on the disk; AUTO looks."""

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
class DatasetWish:
    """Which dataset, and how much of it.

    Attributes:
        path: a file or folder.
        layout: how it lies there.
        split: of BEIR, MIRACL and MLDR; None takes the usual one.
        queries_from: another SQuAD file whose questions are asked; None asks its own.
        queries: most queries; None is all.
        documents: most documents, relevant ones aside; None is all.
    """

    path: Path
    layout: Layout = Layout.AUTO
    split: str | None = None
    queries_from: Path | None = None
    queries: int | None = None
    documents: int | None = None


def open_dataset(wish: DatasetWish) -> Labelled:
    """Read, check and cut a dataset.

    Raises:
        DatasetError: it is not there, of no known layout, malformed, or empty.
    """
    if not wish.path.exists():
        raise DatasetError(f"there is no dataset at {str(wish.path)!r}")
    layout = detected(wish.path) if wish.layout is Layout.AUTO else wish.layout
    if wish.queries_from is not None and layout is not Layout.SQUAD:
        raise DatasetError(f"--queries-from is for SQuAD files, {str(wish.path)!r} is of the {layout} layout")
    return limited(checked(_read(wish, layout), layout.value), wish.queries, wish.documents)


def detected(path: Path) -> Layout:
    """The layout of a file or folder.

    Raises:
        DatasetError: none fits; what each expects is said.
    """
    layout = _of_folder(path) if path.is_dir() else _of_file(path)
    if layout is None:
        raise DatasetError(f"{str(path)!r} is of no known layout. Expected one of:\n{EXPECTED}")
    return layout


def _read(wish: DatasetWish, layout: Layout) -> Raw:
    match layout:
        case Layout.BEIR:
            return beir.read_beir(wish.path, wish.split)
        case Layout.MIRACL:
            return miracl.read_miracl(wish.path, wish.split)
        case Layout.MLDR:
            return miracl.read_mldr(wish.path, wish.split)
        case Layout.FINETUNE:
            return read_finetune_as_dataset(_only_file(wish.path, ".jsonl"))
        case _:
            return read_squad(_only_file(wish.path, ".json"), wish.queries_from)


def _of_folder(folder: Path) -> Layout | None:
    if first_of(folder, beir.CORPUS) and first_of(folder, beir.QUERIES):
        return Layout.BEIR
    if (folder / miracl.TOPICS).is_dir() and (folder / miracl.QRELS).is_dir():
        return Layout.MIRACL
    if first_of(folder, beir.CORPUS) and first_of(folder, *(f"{name}.jsonl" for name in miracl.MLDR_SPLITS)):
        return Layout.MLDR
    if _files(folder, ".json"):
        return Layout.SQUAD
    return Layout.FINETUNE if _files(folder, ".jsonl") else None


def _of_file(path: Path) -> Layout | None:
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        return Layout.FINETUNE
    start = "".join(islice(lines_of(path), 1)).replace(" ", "")
    if '"query":' in start and '"pos":' in start:
        return Layout.FINETUNE
    return Layout.SQUAD if is_squad(json_of(path)) else None


def _files(folder: Path, ending: str) -> list[Path]:
    return sorted([*folder.glob(f"*{ending}"), *folder.glob(f"*{ending}.gz")])


def _only_file(path: Path, ending: str) -> Path:
    if not path.is_dir():
        return path
    found = _files(path, ending)
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(file) for file in found[:8]) or "none"
    raise DatasetError(f"{str(path)!r} is a folder with {len(found)} {ending} files; name one of them: {names}")
