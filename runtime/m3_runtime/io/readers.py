"""Texts and pairs out of files: lines, JSON Lines, Parquet, gzipped or not. All commands read with this module.

A row is read first and looked into later, so that a job that resumes passes over finished rows cheaply. A row that
cannot be used is a value, `BadRow`, for whoever can go on without it; `read_texts` and `read_pairs` make it an error.
"""

import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from m3_runtime.errors import InputError
from m3_runtime.extras import import_extra
from m3_runtime.tokenizer import check_text

STDIN = "-"
LONGEST_BYTES = 1 << 24
"""A longer line is a bad row: it would be no text, but a file without line ends."""

_PIECE_BYTES = 1 << 20
_TABLE_ROWS = 1024
_GZIP = ".gz"


class SourceFormat(StrEnum):
    """How a file is read."""

    LINES = "lines"
    JSONL = "jsonl"
    PARQUET = "parquet"


FORMAT_OF_ENDING = {
    ".jsonl": SourceFormat.JSONL,
    ".ndjson": SourceFormat.JSONL,
    ".json": SourceFormat.JSONL,
    ".parquet": SourceFormat.PARQUET,
    ".pq": SourceFormat.PARQUET,
    ".txt": SourceFormat.LINES,
}


@dataclass(frozen=True, slots=True)
class Row:
    """A text to encode, its id, and its place, "FILE:number"."""

    id: str
    text: str
    place: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be encoded: its place, and why."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True)
class PairRow:
    """A query and a passage, and their place."""

    query: str
    passage: str
    place: str


@dataclass(frozen=True)
class Columns:
    """Names of the columns (JSON keys) that are read.

    Attributes:
        text: of the text.
        id: of the id; None takes "id" where there is one.
    """

    text: str = "text"
    id: str | None = None

    @property
    def id_or_usual(self) -> str:
        """The column that is looked for first."""
        return "id" if self.id is None else self.id


class RawRow(Protocol):
    """A row that was read, but not looked into."""

    @property
    def end_bytes(self) -> int:
        """How far into its file this row reaches."""

    def parsed(self, *, is_numbered: bool = False) -> Row | BadRow:
        """The row, or what is wrong with it; without an id its place is its id, or if `is_numbered` its number."""


def format_of(path: str) -> SourceFormat | None:
    """The format that a name's ending stands for; None if it stands for none.

    >>> format_of("corpus/PART-1.JSONL.gz"), format_of("notes.md"), format_of("a.parquet.gz")
    (<SourceFormat.JSONL: 'jsonl'>, None, None)
    """
    name = path.lower()
    found = FORMAT_OF_ENDING.get(Path(name.removesuffix(_GZIP)).suffix)
    return None if found is SourceFormat.PARQUET and name.endswith(_GZIP) else found


def raw_rows(path: str, source_format: SourceFormat, columns: Columns) -> Iterator[RawRow]:
    """Yield the rows of a file, in order, a little of the file in memory at a time.

    Lines: every line is a text. JSONL: every line is an object or, where no id column is named, a string; blank lines
    are no rows, but count as lines. Parquet: the text column holds strings, the id column strings or integers.

    Args:
        path: a name that ends in .gz is unpacked; "-" is standard input.
        source_format: how to read it.
        columns: which columns or keys to read.

    Raises:
        InputError: the file cannot be read (the error says how far it was read), or lacks a column.
        ExtraNotInstalledError: the file is Parquet and pyarrow is not installed.
    """
    if source_format is SourceFormat.PARQUET:
        yield from _table_rows(path, columns)
        return
    is_jsonl = source_format is SourceFormat.JSONL
    for line in _lines(path):
        if not is_jsonl or line.data is None or line.data.strip():
            yield _RawLine(line, columns, is_jsonl)


def read_texts(path: str, source_format: SourceFormat | None = None) -> Iterator[Row]:
    """Yield the texts of a file or of standard input; a text without an id is called by its number.

    Args:
        path: as in `raw_rows`.
        source_format: how to read it; None goes by the ending, and an unknown one means lines.

    Raises:
        InputError: the file or a row cannot be read; the row is named by its place.
        ExtraNotInstalledError: as `raw_rows`.
    """
    for raw in raw_rows(path, source_format or format_of(path) or SourceFormat.LINES, Columns()):
        row = raw.parsed(is_numbered=True)
        if isinstance(row, BadRow):
            raise InputError(f"{row.place}: {row.reason}")
        yield row


def read_pairs(path: str, source_format: SourceFormat | None = None) -> Iterator[PairRow]:
    """Yield the pairs of a file or of standard input; blank lines are passed over.

    Lines: query, a tab, passage. JSONL: objects with "query" and "passage".

    Args:
        path: as in `raw_rows`.
        source_format: lines or JSONL; None as in `read_texts`.

    Raises:
        InputError: the file or a line cannot be read, or the file is Parquet.
    """
    chosen = source_format or format_of(path) or SourceFormat.LINES
    if chosen is SourceFormat.PARQUET:
        raise InputError(f"{path!r} is Parquet; pairs are read from lines of query, tab, passage, or from JSONL")
    parse = _json_pair if chosen is SourceFormat.JSONL else _tab_pair
    for line in _lines(path):
        if line.data is not None and not line.data.strip():
            continue
        try:
            query, passage = parse(line.decoded())
            check_text(query, "the query")
            check_text(passage, "the passage")
        except InputError as error:
            raise InputError(f"{line.place}: {error}") from error
        yield PairRow(query, passage, line.place)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line with its end; `data` is None where it is too long, and is not held."""

    name: str
    number: int
    data: bytes | None
    end_bytes: int

    @property
    def place(self) -> str:
        return f"{self.name}:{self.number}"

    def decoded(self) -> str:
        if self.data is None:
            raise InputError(f"the line is longer than {LONGEST_BYTES} bytes; split the text")
        try:
            return self.data.decode("utf-8-sig" if self.number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8 text (byte {error.start} of the line)") from error


@dataclass(frozen=True, slots=True)
class _RawLine:
    line: _Line
    columns: Columns
    is_jsonl: bool

    @property
    def end_bytes(self) -> int:
        return self.line.end_bytes

    def parsed(self, *, is_numbered: bool = False) -> Row | BadRow:
        place = self.line.place
        unnamed = str(self.line.number) if is_numbered else place
        try:
            text = self.line.decoded()
            return _row(place, *(self._cells(text, unnamed) if self.is_jsonl else (unnamed, text)))
        except InputError as error:
            return BadRow(place, str(error))

    def _cells(self, line: str, unnamed: str) -> tuple[object, object]:
        """The values under the keys of the id and the text."""
        data, columns = _from_json(line), self.columns
        if isinstance(data, str) and columns.id is None:
            return unnamed, data
        if not isinstance(data, dict):
            raise InputError(f"expected a JSON object, got {type(data).__name__}")
        for key in (columns.text, columns.id):
            if key is not None and key not in data:
                raise InputError(f"the object has no {key!r}")
        return data.get(columns.id_or_usual, unnamed), data[columns.text]


def _lines(path: str) -> Iterator[_Line]:
    name, number = "standard input" if path == STDIN else path, 0
    with _opened(path) as raw:
        try:
            file = gzip.GzipFile(fileobj=raw) if path.lower().endswith(_GZIP) else raw
            position = raw.tell if raw.seekable() else int  # a pipe has no positions, and nobody asks for them
            for number, data in enumerate(_bounded_lines(file), start=1):
                yield _Line(name, number, data, position())
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"cannot read {path!r} after line {number}: {error}") from error


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if path == STDIN:
        yield sys.stdin.buffer
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - only opening it may fail here
    except OSError as error:
        raise InputError(f"cannot read {path!r}: {error.strerror}") from error
    with file:
        yield file


def _bounded_lines(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes | None]:
    while line := file.readline(LONGEST_BYTES + 1):
        if len(line) <= LONGEST_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_PIECE_BYTES)
        yield None


def _row(place: str, name: object, text: object) -> Row:
    if isinstance(name, bool) or not isinstance(name, str | int):
        kind = "null" if name is None else type(name).__name__
        raise InputError(f"the id must be a string or an integer, got {kind}")
    check_text(text, "the text")
    check_text(str(name), "the id")
    assert isinstance(text, str)
    return Row(str(name), text, place)


def _from_json(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error}); for plain text pass --input-format lines") from error


def _json_pair(line: str) -> tuple[Any, Any]:
    data = _from_json(line)
    if not isinstance(data, dict) or "query" not in data or "passage" not in data:
        raise InputError(f'expected an object with "query" and "passage", got {line[:80]!r}')
    return data["query"], data["passage"]


def _tab_pair(line: str) -> tuple[str, str]:
    query, tab, passage = line.partition("\t")
    if not tab:
        raise InputError(f"expected a query, a tab and a passage, got {line[:80]!r}")
    return query, passage


@dataclass(frozen=True, slots=True)
class _RawCells:
    """A row's cells in two columns; `names` is None where there is no id column."""

    path: str
    number: int
    texts: Any
    names: Any
    offset: int
    end_bytes: int

    def parsed(self, *, is_numbered: bool = False) -> Row | BadRow:
        place = f"{self.path}:{self.number}"
        try:
            text = self.texts[self.offset].as_py()
            if text is None:
                return BadRow(place, "the text is null")
            unnamed = str(self.number) if is_numbered else place
            return _row(place, unnamed if self.names is None else self.names[self.offset].as_py(), text)
        except UnicodeDecodeError as error:  # writers may put any bytes into a string column
            return BadRow(place, f"not UTF-8 text (byte {error.start} of the cell)")
        except InputError as error:
            return BadRow(place, str(error))


def _table_rows(path: str, columns: Columns) -> Iterator[_RawCells]:
    pa, pq = import_extra("pyarrow", "bulk"), import_extra("pyarrow.parquet", "bulk")
    try:
        # Without buffering a whole column of a row group is read at once, and a file may be one row group.
        with pq.ParquetFile(path, buffer_size=_PIECE_BYTES, pre_buffer=False) as file:
            id_column = _id_column(file.schema_arrow, path, columns)
            size_bytes, rows, number = Path(path).stat().st_size, file.metadata.num_rows, 0
            wanted = dict.fromkeys([columns.text] if id_column is None else [columns.text, id_column])
            for batch in file.iter_batches(_TABLE_ROWS, columns=list(wanted)):
                texts = batch.column(columns.text)
                names = None if id_column is None else batch.column(id_column)
                for offset in range(batch.num_rows):
                    number += 1
                    yield _RawCells(path, number, texts, names, offset, size_bytes * number // rows)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read {path!r} as Parquet: {error}") from error


def _id_column(schema: Any, path: str, columns: Columns) -> str | None:
    """The name of the id column; None if there is none and none was asked for."""
    types = import_extra("pyarrow.types", "bulk")
    strings = (types.is_string, types.is_large_string)
    _check_column(schema, path, columns.text, strings, "strings")
    if columns.id is None and columns.id_or_usual not in schema.names:
        return None
    _check_column(schema, path, columns.id_or_usual, (*strings, types.is_integer), "strings or integers")
    return columns.id_or_usual


def _check_column(schema: Any, path: str, name: str, kinds: tuple[Any, ...], expected: str) -> None:
    if schema.names.count(name) != 1:
        found = "two columns" if name in schema.names else "no column"
        raise InputError(f"{path!r} has {found} {name!r}; its columns are: {', '.join(schema.names)}")
    kind = schema.field(name).type
    value_kind = kind.value_type if import_extra("pyarrow.types", "bulk").is_dictionary(kind) else kind
    if not any(is_kind(value_kind) for is_kind in kinds):
        raise InputError(f"{path!r}: column {name!r} must hold {expected}, got {kind}")
