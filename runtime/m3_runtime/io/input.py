"""Reading texts and pairs for the command line; every complaint names the line."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from m3_runtime.errors import InputError
from m3_runtime.tokenizer import check_text

STDIN = "-"
_JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})


class InputFormat(StrEnum):
    """How a line is read."""

    AUTO = "auto"
    JSONL = "jsonl"
    LINES = "lines"


@dataclass(frozen=True)
class TextRecord:
    """A text to encode, what it is called, and where it came from."""

    id: str
    text: str
    where: str


@dataclass(frozen=True)
class PairRecord:
    """A query and a passage, and where they came from."""

    query: str
    passage: str
    where: str


def read_texts(source: str, input_format: InputFormat) -> Iterator[TextRecord]:
    """Yield the texts of a file, or of standard input.

    Lines: every line is a text, and its id is its number. JSONL: every line is a JSON string or an object with
    "text" and, if it likes, "id"; blank lines are passed over.

    Raises:
        InputError: the file or a line cannot be read.
    """
    is_jsonl = _resolved(source, input_format) is InputFormat.JSONL
    for number, where, line in _lines(source):
        if is_jsonl and not line.strip():
            continue
        record = _json_record(line, number, where) if is_jsonl else TextRecord(str(number), line, where)
        check_text(record.text, f"{where}: the text")
        yield record


def read_pairs(source: str, input_format: InputFormat) -> Iterator[PairRecord]:
    """Yield the pairs of a file, or of standard input; blank lines are passed over.

    Lines: query, a tab, passage. JSONL: objects with "query" and "passage".

    Raises:
        InputError: the file or a line cannot be read.
    """
    is_jsonl = _resolved(source, input_format) is InputFormat.JSONL
    for _, where, line in _lines(source):
        if not line.strip():
            continue
        query, passage = _json_pair(line, where) if is_jsonl else _tab_pair(line, where)
        check_text(query, f"{where}: the query")
        check_text(passage, f"{where}: the passage")
        yield PairRecord(query, passage, where)


def _resolved(source: str, input_format: InputFormat) -> InputFormat:
    if input_format is not InputFormat.AUTO:
        return input_format
    return InputFormat.JSONL if Path(source).suffix.lower() in _JSONL_SUFFIXES else InputFormat.LINES


def _lines(source: str) -> Iterator[tuple[int, str, str]]:
    """(line number, "FILE:number" for complaints, line without its end)."""
    name = "standard input" if source == STDIN else source
    with _opened(source) as file:
        for number, raw in enumerate(file, start=1):
            where = f"{name}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{where}: not UTF-8 text (byte {error.start} of the line)") from error
            yield number, where, line.rstrip("\r\n")


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == STDIN:
        yield sys.stdin.buffer
        return
    try:
        file = Path(source).open("rb")  # noqa: SIM115 - only opening it may fail here
    except OSError as error:
        raise InputError(f"cannot read {source!r}: {error.strerror}") from error
    with file:
        yield file


def _parsed(line: str, where: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON ({error}); for plain text pass --input-format lines") from error


def _json_record(line: str, number: int, where: str) -> TextRecord:
    data = _parsed(line, where)
    if isinstance(data, str):
        return TextRecord(str(number), data, where)
    if not isinstance(data, dict) or "text" not in data:
        raise InputError(f'{where}: expected an object with "text", got {line[:80]!r}')
    name = data.get("id", number)
    if not isinstance(name, str | int):
        raise InputError(f'{where}: "id" must be a string or an integer, got {type(name).__name__}')
    return TextRecord(str(name), data["text"], where)


def _json_pair(line: str, where: str) -> tuple[str, str]:
    data = _parsed(line, where)
    if not isinstance(data, dict) or "query" not in data or "passage" not in data:
        raise InputError(f'{where}: expected an object with "query" and "passage", got {line[:80]!r}')
    return data["query"], data["passage"]


def _tab_pair(line: str, where: str) -> tuple[str, str]:
    query, tab, passage = line.partition("\t")
    if not tab:
        raise InputError(f"{where}: expected a query, a tab and a passage, got {line[:80]!r}")
    return query, passage
