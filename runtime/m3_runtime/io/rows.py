"""What is read out of files: rows, pairs, and the rules for both, whatever the file's format is.

A row that cannot be used is a value, `BadRow`, for callers that can go on without it.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from m3_runtime.errors import InputError
from m3_runtime.tokenizer import check_text

LONGEST_BYTES = 1 << 24
"""A longer line, cell or JSON value is no text: it is a file without line ends, or without a closing quote."""


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
    """Names of the columns (JSON keys) that are read; `chunk.text` is the field `text` of the column `chunk`.

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


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row that was read, but not looked into.

    Attributes:
        path: of its file.
        number: of the row, or of the line in which it begins.
        end_bytes: how far into its file it reaches.
        cells: gives its id and its text; called with the id of a row that has none. Raises InputError.
    """

    path: str
    number: int
    end_bytes: int
    cells: Callable[[str], tuple[object, object]]

    def parsed(self, *, is_numbered: bool = False) -> Row | BadRow:
        """The row, or what is wrong with it; without an id its place is its id, or if `is_numbered` its number."""
        place = f"{self.path}:{self.number}"
        try:
            return _checked_row(place, *self.cells(str(self.number) if is_numbered else place))
        except InputError as error:
            return BadRow(place, str(error))


def _checked_row(place: str, name: object, text: object) -> Row:
    """A row of cells as a file's reader gives them.

    Raises:
        InputError: the id is no string, integer or UUID, or one of the two is no text.
    """
    name, text = _unpacked(name, "id"), _unpacked(text, "text")
    if isinstance(name, bool) or not isinstance(name, str | int | uuid.UUID):
        kind = "null" if name is None else type(name).__name__
        raise InputError(f"the id must be a string or an integer, got {kind}")
    check_text(text, "the text")
    check_text(str(name), "the id")
    assert isinstance(text, str)
    return Row(str(name), text, place)


def json_cells(data: Any, columns: Columns, unnamed: str) -> tuple[object, object]:
    """The id and the text in a JSON value; `unnamed` is the id of what has none.

    Raises:
        InputError: it is no object, or lacks a key.
    """
    if isinstance(data, str) and columns.id is None:
        return unnamed, data
    if not isinstance(data, dict):
        raise InputError(f"expected a JSON object, got {type(data).__name__}")
    text = _under(data, columns.text)
    return (data.get("id", unnamed) if columns.id is None else _under(data, columns.id)), text


def _under(data: dict[str, Any], name: str) -> object:
    """The value of a key, or of a path of keys with dots between them."""
    if name in data:
        return data[name]
    found: object = data
    for key in name.split("."):
        if not isinstance(found, dict) or key not in found:
            raise InputError(f"the object has no {name!r}")
        found = found[key]
    return found


def _unpacked(cell: object, what: str) -> object:
    """Bytes as the UTF-8 that they are; files read leniently have bytes that are none as lone surrogates."""
    try:
        if isinstance(cell, bytes):
            return cell.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"the {what} is not UTF-8 text (byte {error.start} of the cell)") from error
    return cell
