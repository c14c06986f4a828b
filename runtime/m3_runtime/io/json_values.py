"""JSON that is no JSON Lines: an array, or values one after the other, printed over as many lines as they like.

The file is not read at once: a value at a time is in memory.
"""

import io
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from m3_runtime.errors import InputError
from m3_runtime.io.opened import opened
from m3_runtime.io.rows import LONGEST_BYTES, Columns, RawRow, json_cells

_PIECE_CHARACTERS = 1 << 16
_BLANKS = " \t\r\n"


def json_rows(path: str, columns: Columns) -> Iterator[RawRow]:
    """Yield the elements of an array, or the values of a file.

    Raises:
        InputError: the file cannot be read, or what comes next is not JSON: nothing behind it can be trusted.
    """
    number = 0
    try:
        with (
            opened(path, lambda: f" after value {number}") as file,
            io.TextIOWrapper(file.bytes, encoding="utf-8-sig") as text,
        ):
            for number, data in enumerate(_values(_Ahead(text)), start=1):
                yield RawRow(path, number, file.position(), partial(json_cells, data, columns))
    except UnicodeDecodeError as error:
        raise InputError(f"{path!r}: after value {number}: not UTF-8 text") from error
    except InputError as error:
        raise InputError(str(error) if path in str(error) else f"{path!r}: after value {number}: {error}") from error


def _values(ahead: "_Ahead") -> Iterator[Any]:
    if ahead.next() != "[":
        while ahead.next():
            yield ahead.value()
        return
    ahead.skip()
    while ahead.next() != "]":
        yield ahead.value()
        if ahead.next() == ",":
            ahead.skip()
            if ahead.next() == "]":
                raise InputError("an element is missing after the last comma of the array")
        elif ahead.next() != "]":
            raise InputError("the array goes on without a comma, or does not end: the file may be cut off")
    ahead.skip()
    if ahead.next():
        raise InputError("there is something behind the array; a file is one array, or values without one")


class _Ahead:
    """A text of which the next value is held, and some more."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text, self._held, self._at, self._is_all = text, "", 0, False
        self._decoder = json.JSONDecoder()

    def next(self) -> str:
        """The next character that is no blank; "" at the end."""
        while True:
            while self._at < len(self._held) and self._held[self._at] in _BLANKS:
                self._at += 1
            if self._at < len(self._held) or self._is_all:
                return self._held[self._at : self._at + 1]
            self._fill()

    def skip(self) -> None:
        """Go behind the next character."""
        self._at += 1

    def value(self) -> Any:
        """The next value."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._held, self._at)
            except (ValueError, RecursionError) as error:
                if self._is_all or isinstance(error, RecursionError):
                    raise InputError(f"not JSON ({error})") from error
                end = len(self._held)
            if end < len(self._held) or self._is_all:  # a number at the end may go on
                self._at = end
                return value
            if len(self._held) - self._at > LONGEST_BYTES:
                raise InputError(f"not JSON, or a value of more than {LONGEST_BYTES} bytes")
            self._fill()

    def _fill(self) -> None:
        """Hold twice as much, so that a long value is not decoded too often."""
        rest = self._held[self._at :]
        more = self._text.read(max(_PIECE_CHARACTERS, len(rest)))
        self._held, self._at, self._is_all = rest + more, 0, not more
