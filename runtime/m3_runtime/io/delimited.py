"""CSV and TSV with a header, read by Python's `csv`: quoted cells may hold delimiters and line breaks."""

import csv
import io
from collections.abc import Iterator, Sequence
from functools import partial

from m3_runtime.errors import FileFormatError, InputError
from m3_runtime.io.opened import opened
from m3_runtime.io.rows import LONGEST_BYTES, Columns, RawRow

_OTHERS = (",", ";", "\t", "|")


def delimited_rows(path: str, delimiter: str, columns: Columns) -> Iterator[RawRow]:
    """Yield the records behind the header; empty lines are none.

    Where the header lacks a column with the format's delimiter, another of `,`, `;`, tab and `|` with which it has all
    columns is taken, as German and French programs write CSV.

    Raises:
        InputError: the file cannot be read, a column is missing or there twice, or a quoted cell does not end.
    """
    csv.field_size_limit(LONGEST_BYTES)
    line = 0
    try:
        # What is no UTF-8 spoils its own row only.
        with (
            opened(path, lambda: f" after line {line}") as file,
            io.TextIOWrapper(file.bytes, "utf-8-sig", errors="surrogateescape", newline="") as text,
        ):
            first = text.readline(LONGEST_BYTES)
            delimiter = _delimiter(first, delimiter, columns)
            reader = csv.reader(_bounded(path, first, text), delimiter=delimiter, strict=True)
            header = next(reader, [])
            if not header and not first:
                return
            _check_header(path, header, columns)
            line = reader.line_num
            for cells in reader:
                if cells:
                    yield RawRow(path, line + 1, file.position(), partial(_id_and_text, cells, header, columns))
                line = reader.line_num
    except csv.Error as error:
        raise InputError(
            f"{path!r}: the record in line {line + 1} cannot be read ({error}): does a quoted cell not end?"
        ) from error


def _id_and_text(cells: Sequence[str], header: Sequence[str], columns: Columns, unnamed: str) -> tuple[str, str]:
    if len(cells) != len(header):
        raise InputError(f"expected {len(header)} cells as in the header, got {len(cells)}")
    text, id_column = cells[header.index(columns.text)], columns.id_or_usual
    name = cells[header.index(id_column)] if id_column in header else unnamed
    try:
        (name + text).encode()  # bytes that are no UTF-8 were read as lone surrogates
    except UnicodeEncodeError:
        raise InputError("not UTF-8 text") from None
    return name, text


def _delimiter(first: str, own: str, columns: Columns) -> str:
    for delimiter in (own, *_OTHERS):
        try:
            header = next(csv.reader([first], delimiter=delimiter), [])
        except csv.Error:
            continue
        if columns.text in header and (columns.id is None or columns.id in header):
            return delimiter
    return own


def _check_header(path: str, header: Sequence[str], columns: Columns) -> None:
    wanted = [columns.text, *([] if columns.id is None else [columns.id])]
    for name in wanted:
        if name not in header:
            names = ", ".join(header)
            raise FileFormatError(
                f"{path!r} has no column {name!r}; the first line is the header, and its columns are: {names}. Rename "
                "one; a file without a header, in which every line is a text, ends in .txt",
                text="COLUMN",
                id="COLUMN",
                input_format="lines",
            )
    if twice := [name for name in (*wanted, columns.id_or_usual) if header.count(name) > 1]:
        raise InputError(f"{path!r} has two columns {twice[0]!r}; rename one of them")


def _bounded(path: str, first: str, text: io.TextIOWrapper) -> Iterator[str]:
    line = first
    while line:
        if len(line) > LONGEST_BYTES:
            raise InputError(f"{path!r}: a line is longer than {LONGEST_BYTES} bytes; this is no CSV of texts")
        yield line
        line = text.readline(LONGEST_BYTES + 1)
