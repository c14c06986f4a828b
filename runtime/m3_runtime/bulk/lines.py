"""Rows of text files and of JSON Lines, gzipped or not."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from m3_runtime.bulk.rows import BadRow, Columns, Row, checked_row
from m3_runtime.errors import InputError

LONGEST_BYTES = 1 << 24
"""A longer line is a bad row: it would be no text, but a file without line ends."""

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _RawLine:
    """A line with its end; None is one that is too long, and is not held."""

    path: str
    number: int
    line: bytes | None
    end_bytes: int
    columns: Columns
    is_jsonl: bool

    def parsed(self) -> Row | BadRow:
        """Decode the line, and read the object if it is JSON."""
        place = f"{self.path}:{self.number}"
        if self.line is None:
            return BadRow(place, f"the line is longer than {LONGEST_BYTES} bytes; split the text")
        try:
            line = self.line.decode("utf-8-sig" if self.number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            return BadRow(place, f"not UTF-8 text (byte {error.start} of the line)")
        return _json_row(line, place, self.columns) if self.is_jsonl else checked_row(place, place, line)


def raw_rows(path: str, columns: Columns, *, is_jsonl: bool) -> Iterator[_RawLine]:
    """Yield the lines of a file. Blank lines of JSONL are no rows, but count as lines.

    Args:
        path: a name that ends in .gz is unpacked.
        columns: keys of the objects.
        is_jsonl: a line is a JSON object or string, else it is a text as it stands.

    Raises:
        InputError: the file cannot be read; how far it was read is said.
    """
    number = 0
    try:
        with Path(path).open("rb") as raw:
            lines = gzip.GzipFile(fileobj=raw) if path.lower().endswith(".gz") else raw
            for number, line in enumerate(_lines(lines), start=1):
                if line is None or not is_jsonl or line.strip():
                    yield _RawLine(path, number, line, raw.tell(), columns, is_jsonl)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path!r} after line {number}: {error}") from error


def _lines(file: BinaryIO | gzip.GzipFile) -> Iterator[bytes | None]:
    """Yield lines with their ends; None for one that is too long."""
    while line := file.readline(LONGEST_BYTES + 1):
        if len(line) <= LONGEST_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(_PIECE_BYTES)
        yield None


def _json_row(line: str, place: str, columns: Columns) -> Row | BadRow:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadRow(place, f"not JSON ({error})")
    if isinstance(data, str) and columns.id is None:
        return checked_row(place, place, data)
    if not isinstance(data, dict):
        return BadRow(place, f"expected a JSON object, got {type(data).__name__}")
    if columns.text not in data:
        return BadRow(place, f"the object has no {columns.text!r}")
    if columns.id is not None and columns.id not in data:
        return BadRow(place, f"the object has no {columns.id!r}")
    return checked_row(place, data.get(columns.id_or_usual, place), data[columns.text])
