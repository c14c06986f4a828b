"""Texts and pairs out of files: the one way in which every command reads them.

A row is read first and looked into later, so that a job that resumes passes over finished rows cheaply. `raw_rows`
leaves rows that cannot be used to its caller; `read_texts` and `read_pairs` make them an error.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from m3_runtime.errors import FileFormatError, InputError
from m3_runtime.io.delimited import delimited_rows
from m3_runtime.io.formats import STDIN, SourceFormat, endings_in_words, format_of
from m3_runtime.io.json_values import json_rows
from m3_runtime.io.opened import opened
from m3_runtime.io.rows import LONGEST_BYTES, BadRow, Columns, PairRow, RawRow, Row, json_cells
from m3_runtime.io.tables import table_rows
from m3_runtime.tokenizer import check_text

_PIECE_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
_PAIRS = Columns(text="passage", id="query")  # a pair is the passage's row, by its query's name


def known_format(path: str, source_format: SourceFormat | None = None) -> SourceFormat:
    """How to read a file: as asked, or as its name's ending says.

    A name that ends in .json may stand for JSON Lines: it does if the first line is a whole object or string.
    Standard input is read as lines.

    Raises:
        InputError: nothing was asked for, and the ending says nothing, or not enough; or there is no such file.
    """
    found = source_format or (SourceFormat.LINES if path == STDIN else format_of(path))
    if found is None:
        if not Path(path).exists() or Path(path).is_dir():
            raise InputError(f"cannot read {path!r}: {'a folder' if Path(path).is_dir() else 'no such file'}")
        raise FileFormatError(
            f"{path!r}: its name does not say how it is read; known endings are {endings_in_words()}. Rename it",
            input_format="|".join(SourceFormat),
        )
    if source_format is not None or found is not SourceFormat.JSON:
        return found
    if Path(path).is_fifo():
        raise FileFormatError(
            f"{path!r} is a pipe, whose beginning can be read only once, and .json may stand for JSON Lines; "
            "write it to a file",
            input_format="json|jsonl",
        )
    return SourceFormat.JSONL if _begins_with_a_line(path) else found


def raw_rows(path: str, source_format: SourceFormat, columns: Columns) -> Iterator[RawRow]:
    """Yield the rows of a file, in order, a little of the file in memory at a time.

    Lines: every line is a text. JSONL: every line is an object or, where no id column is named, a string; blank lines
    are no rows, but count as lines. JSON: the same values, in an array or one after the other. CSV and TSV: the first
    line is the header. Parquet: the text column holds strings or UTF-8, the id column strings, integers or UUIDs.

    Args:
        path: a name that ends in .gz, .bz2, .xz, .zst or .lz4 is unpacked; "-" is standard input.
        source_format: how to read it.
        columns: which columns or keys to read.

    Raises:
        InputError: the file cannot be read (the error says how far it was read), lacks a column, or changed meanwhile.
        ExtraNotInstalledError: the file is Parquet, zstd or lz4, and pyarrow is not installed.
    """
    match source_format:
        case SourceFormat.PARQUET:
            yield from table_rows(path, columns)
        case SourceFormat.JSON:
            yield from json_rows(path, columns)
        case SourceFormat.CSV:
            yield from delimited_rows(path, ",", columns)
        case SourceFormat.TSV:
            yield from delimited_rows(path, "\t", columns)
        case SourceFormat.JSONL:
            yield from _objects(path, columns)
        case SourceFormat.LINES:
            for line in _lines(path):
                yield RawRow(line.path, line.number, line.end_bytes, partial(_whole_line, line))


def read_texts(
    path: str,
    source_format: SourceFormat | None = None,
    columns: Columns = Columns(),  # noqa: B008 - frozen
) -> Iterator[Row]:
    """Yield the texts of a file or of standard input; a text without an id is called by its number.

    Arguments are those of `raw_rows`; where no format is given, `known_format` says it.

    Raises:
        InputError: the file or a row cannot be read, or its format is not known; the row is named by its place.
        ExtraNotInstalledError: as `raw_rows`.
    """
    for raw in raw_rows(path, known_format(path, source_format), columns):
        row = raw.parsed(is_numbered=True)
        if isinstance(row, BadRow):
            raise InputError(f"{row.place}: {row.reason}")
        yield row


def read_pairs(path: str, source_format: SourceFormat | None = None) -> Iterator[PairRow]:
    """Yield the pairs of a file or of standard input; blank lines are passed over.

    Lines (.txt and .tsv): query, a tab, passage. A .tsv whose first line has the columns "query" and "passage" is read
    behind this header, as `read_texts` reads one. JSONL: objects with "query" and "passage". Other formats cannot be
    asked for; None is as in `read_texts`.

    Raises:
        InputError: the file or a line cannot be read, or the file is of another format.
    """
    is_tabbed = source_format is None and path != STDIN and format_of(path) is SourceFormat.TSV
    if is_tabbed and _has_header_of_pairs(path):
        yield from _pairs_behind_header(path)
        return
    chosen = SourceFormat.LINES if is_tabbed else known_format(path, source_format)
    if chosen not in (SourceFormat.LINES, SourceFormat.JSONL):
        raise InputError(f"{path!r} is {chosen}; pairs are read from lines of query, tab, passage, or from JSONL")
    parse = _json_pair if chosen is SourceFormat.JSONL else _tab_pair
    for line in _lines(path):
        if line.data is not None and not line.data.strip():
            continue
        try:
            query, passage = parse(line.decoded())
        except InputError as error:
            raise InputError(f"{line.place}: {error}") from error
        yield _checked_pair(query, passage, line.place)


def _checked_pair(query: Any, passage: Any, place: str) -> PairRow:
    try:
        check_text(query, "the query")
        check_text(passage, "the passage")
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    return PairRow(query, passage, place)


def _has_header_of_pairs(path: str) -> bool:
    """Whether the first line of a .tsv names the columns of pairs; of a pipe it cannot be looked at beforehand.

    Raises:
        FileFormatError: it names them in other letters.
    """
    if Path(path).is_fifo():
        return False
    with opened(path) as file:
        first = file.bytes.readline(_HEAD_BYTES).decode("utf-8-sig", "replace")
    names = [name.strip('"') for name in first.rstrip("\r\n").split("\t")]
    if {_PAIRS.text, _PAIRS.id} <= set(names):
        return True
    if {_PAIRS.text, _PAIRS.id} <= {name.strip().lower() for name in names}:
        raise FileFormatError(
            f"{path!r} has a header, {first.strip()!r}; the columns of pairs are query and passage, in lower case. "
            "Rename them; a file without a header, in which every line is a pair, may end in .txt",
            input_format="lines",
        )
    return False


def _pairs_behind_header(path: str) -> Iterator[PairRow]:
    for raw in delimited_rows(path, "\t", _PAIRS):
        place = f"{raw.path}:{raw.number}"
        try:
            query, passage = raw.cells("")
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        if any(str(cell).strip() for cell in (query, passage)):
            yield _checked_pair(query, passage, place)


@dataclass(frozen=True, slots=True)
class _Line:
    """A line with its end; `data` is None where it is too long, and is not held."""

    path: str
    number: int
    data: bytes | None
    end_bytes: int

    @property
    def place(self) -> str:
        return f"{self.path}:{self.number}"

    def decoded(self) -> str:
        if self.data is None:
            raise InputError(f"the line is longer than {LONGEST_BYTES} bytes; split the text")
        try:
            return self.data.decode("utf-8-sig" if self.number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"not UTF-8 text (byte {error.start} of the line)") from error


def _whole_line(line: _Line, unnamed: str) -> tuple[str, str]:
    return unnamed, line.decoded()


def _json_line(line: _Line, columns: Columns, unnamed: str) -> tuple[object, object]:
    return json_cells(_from_json(line.decoded()), columns, unnamed)


def _objects(path: str, columns: Columns) -> Iterator[RawRow]:
    """The lines of JSON Lines; JSON that is printed over several lines would be a bad row in each of them."""
    is_first = True
    for line in _lines(path):
        if line.data is not None and not line.data.strip():
            continue
        if is_first and line.data is not None and _is_printed(line.data):
            raise FileFormatError(
                f"{path!r} is JSON, but no JSON Lines: an array, or objects over several lines; "
                "let its name end in .json",
                input_format="json",
            )
        is_first = False
        yield RawRow(line.path, line.number, line.end_bytes, partial(_json_line, line, columns))


def _is_printed(line: bytes) -> bool:
    start = line.removeprefix(b"\xef\xbb\xbf").strip()
    return start.startswith(b"[") or start == b"{"


def _begins_with_a_line(path: str) -> bool:
    """Whether the first line that is not blank is a JSON value of its own, and no array."""
    with opened(path) as file:
        for line in file.bytes.read(_HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True):
            if line.strip():
                is_cut = not line.endswith(b"\n") and len(line) >= _HEAD_BYTES // 2
                return not _is_printed(line) and (is_cut or _is_json(line))
    return True  # nothing in it


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return not line.lstrip().startswith(b"{")  # an object goes on in the next line; anything else is a bad row
    return True


def _lines(path: str) -> Iterator[_Line]:
    name, number = "standard input" if path == STDIN else path, 0
    with opened(path, lambda: f" after line {number}") as file:
        for number, data in enumerate(_bounded_lines(file.bytes), start=1):
            yield _Line(name, number, data, file.position())


def _bounded_lines(file: BinaryIO) -> Iterator[bytes | None]:
    while line := file.readline(LONGEST_BYTES + 1):
        if len(line) <= LONGEST_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_PIECE_BYTES)
        yield None


def _from_json(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error}); plain text is read as lines, from a .txt file") from error


def _json_pair(line: str) -> tuple[Any, Any]:
    data = _from_json(line)
    if not isinstance(data, dict) or "query" not in data or "passage" not in data:
        raise InputError(f'expected an object with "query" and "passage", got {line[:80]!r}')
    return data["query"], data["passage"]


def _tab_pair(line: str) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) != 2:
        found = repr(line[:80]) if len(columns) < 2 else f"{len(columns)} columns; texts with tabs go into JSONL"
        raise InputError(f"expected a query, a tab and a passage, got {found}")
    return columns[0], columns[1]
