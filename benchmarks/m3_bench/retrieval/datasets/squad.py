"""SQuAD's layout: one JSON file of articles, paragraphs and questions. A question's document is its paragraph."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3_bench.errors import DatasetError
from m3_bench.retrieval.datasets.files import as_identifier, as_text, digest_of, json_of
from m3_bench.retrieval.datasets.labelled import Item, Judgment, Raw


@dataclass(frozen=True)
class Paragraph:
    """A paragraph and its questions, which have their ids from the file."""

    text: str
    questions: tuple[Item, ...]


def read_squad(path: Path, queries_from: Path | None = None) -> Raw:
    """Read a file, or its paragraphs with the questions of another file, which has the same ones in another language.

    Paragraphs of the same text are one document.

    Raises:
        DatasetError: a file is not SQuAD's layout, or the two do not fit each other.
    """
    paragraphs = _paragraphs(path)
    if queries_from is None:
        asked, name, files = paragraphs, path.name, [path]
    else:
        asked, name, files = _paragraphs(queries_from), f"{queries_from.name} → {path.name}", [path, queries_from]
        _check_alike(paragraphs, asked, path, queries_from)
    first_of_text = {paragraph.text: f"p{n}" for n, paragraph in reversed(list(enumerate(paragraphs)))}
    documents = [Item(f"p{n}", p.text) for n, p in enumerate(paragraphs) if first_of_text[p.text] == f"p{n}"]
    pairs = [
        (question, first_of_text[p.text]) for p, a in zip(paragraphs, asked, strict=True) for question in a.questions
    ]
    same = len(paragraphs) - len(documents)
    return Raw(
        name=name,
        sha256=digest_of(files),
        documents=documents,
        queries=[question for question, _ in pairs],
        judgments=[Judgment(question.id, document, 1, f"{path}: {question.id}") for question, document in pairs],
        notes=(f"{same} paragraphs have the text of an earlier one and are one document with it",) if same else (),
    )


def is_squad(value: Any) -> bool:
    """Whether a JSON value looks like SQuAD's layout."""
    articles = value.get("data") if isinstance(value, dict) else None
    return isinstance(articles, list) and all(isinstance(a, dict) and "paragraphs" in a for a in articles)


def _paragraphs(path: Path) -> Sequence[Paragraph]:
    value = json_of(path)
    if not is_squad(value):
        raise DatasetError(f'{str(path)!r} is not SQuAD\'s layout: expected {{"data": [{{"paragraphs": […]}}, …]}}')
    paragraphs = []
    for a, article in enumerate(value["data"]):
        for p, paragraph in enumerate(_list(article["paragraphs"], f"{path}: data[{a}].paragraphs")):
            paragraphs.append(_paragraph(paragraph, f"{path}: data[{a}].paragraphs[{p}]"))
    return paragraphs


def _paragraph(value: Any, where: str) -> Paragraph:
    if not isinstance(value, dict):
        raise DatasetError(f"{where} must be an object, got {type(value).__name__}")
    questions = []
    for q, question in enumerate(_list(value.get("qas"), f"{where}.qas")):
        here = f"{where}.qas[{q}]"
        if not isinstance(question, dict):
            raise DatasetError(f"{here} must be an object, got {type(question).__name__}")
        identifier = as_identifier(question.get("id"), f"{here}.id")
        questions.append(Item(identifier, as_text(question.get("question"), f"{here}.question")))
    return Paragraph(as_text(value.get("context"), f"{where}.context"), tuple(questions))


def _list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise DatasetError(f"{where} must be a list, got {type(value).__name__}")
    return value


def _check_alike(ours: Sequence[Paragraph], theirs: Sequence[Paragraph], path: Path, other: Path) -> None:
    if len(ours) != len(theirs):
        raise DatasetError(
            f"{str(other)!r} has {len(theirs)} paragraphs and {str(path)!r} {len(ours)}; questions of one file fit the "
            "paragraphs of another only where both are the same text in two languages, in the same order"
        )
    for n, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if len(a.questions) != len(b.questions):
            raise DatasetError(
                f"paragraph {n} has {len(b.questions)} questions in {str(other)!r} and {len(a.questions)} in "
                f"{str(path)!r}; both must be the same in two languages"
            )
