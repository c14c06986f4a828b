"""Rows of the input: a good one has an id and a text, a bad one a reason."""

from dataclasses import dataclass
from typing import Protocol

from m3_runtime.errors import InputError
from m3_runtime.tokenizer import check_text


@dataclass(frozen=True, slots=True)
class Row:
    """A text to encode, what it is called, and where it came from."""

    id: str
    text: str
    place: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be encoded: where it is, and why."""

    place: str
    reason: str


@dataclass(frozen=True)
class Columns:
    """Names of the columns (JSON keys) that are read.

    Attributes:
        text: of the text.
        id: of the id; None takes "id" where there is one, and otherwise calls a row by its place.
    """

    text: str = "text"
    id: str | None = None

    @property
    def id_or_usual(self) -> str:
        """The column that is looked for first."""
        return "id" if self.id is None else self.id


class RawRow(Protocol):
    """A row that has been read but not looked into: rows that are done already are passed over cheaply."""

    @property
    def end_bytes(self) -> int:
        """How far into its file this row reaches."""

    def parsed(self) -> Row | BadRow:
        """The row, or what is wrong with it."""


def checked_row(place: str, name: object, text: object) -> Row | BadRow:
    """A row of what was found in its columns.

    Args:
        place: "FILE:number".
        name: the id.
        text: the text.
    """
    if isinstance(name, bool) or not isinstance(name, str | int):
        return BadRow(place, f"the id must be a string or an integer, got {_kind(name)}")
    try:
        check_text(text, "the text")
        check_text(str(name), "the id")
    except InputError as error:
        return BadRow(place, str(error))
    assert isinstance(text, str)
    return Row(str(name), text, place)


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
