"""Reading text files, gzipped or not, so that an error names the file, the line and the key."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from m3_bench.errors import DatasetError
from m3_runtime.errors import ExtraNotInstalledError, InputError
from m3_runtime.io.opened import READ_ERRORS, opened

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """A JSON object; `place` stands before the key in errors, "corpus.jsonl, line 3: " for instance.

    Every method raises DatasetError for what is missing or of another kind.
    """

    place: str
    values: Mapping[str, Any]

    @classmethod
    def parsed(cls, text: str, place: str) -> "Record":
        """The object that a line holds."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{place}not JSON ({error}); expected one object on each line") from error
        if not isinstance(value, dict):
            raise DatasetError(f"{place}expected an object, got {kind_of(value)}")
        return cls(place, value)

    def text(self, key: str, *, default: str | None = None) -> str:
        """The text under a key; `default` where the key is missing or null."""
        if default is not None and self.values.get(key) is None:
            return default
        return _checked_text(self._value(key), f"{self.place}{key}")

    def identifier(self, *keys: str) -> str:
        """The id under the first of these keys that exists; a number counts as its digits."""
        key = next((key for key in keys if key in self.values), keys[0])
        value = self._value(key, " or ".join(map(repr, keys)))
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise DatasetError(f"{self.place}{key} must be an id (text or a whole number), got {value!r}")
        return str(value)

    def items(self, key: str) -> list[Any]:
        """The list under a key."""
        value = self._value(key)
        if not isinstance(value, list):
            hint = f"; write [{json.dumps(value, ensure_ascii=False)[:80]}]" if isinstance(value, str) else ""
            raise DatasetError(f"{self.place}{key} must be a list, got {kind_of(value)}{hint}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """The texts of the list under a key."""
        return tuple(_checked_text(one, f"{self.place}{key}[{n}]") for n, one in enumerate(self.items(key)))

    def records(self, key: str) -> Iterator["Record"]:
        """The objects of the list under a key."""
        for number, one in enumerate(self.items(key)):
            if not isinstance(one, dict):
                raise DatasetError(f"{self.place}{key}[{number}] must be an object, got {kind_of(one)}")
            yield Record(f"{self.place}{key}[{number}]: ", one)

    def _value(self, key: str, wanted: str = "") -> Any:
        if key not in self.values:
            has = ", ".join(map(repr, self.values)) or "(none)"
            raise DatasetError(f"{self.place}the key {wanted or repr(key)} is missing; keys are {has}")
        return self.values[key]


def _checked_text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise DatasetError(f"{what} must be a text, got {kind_of(value)}")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise DatasetError(f"{what} has half of a surrogate pair, which is no character; write it again as UTF-8")
    return value


def kind_of(value: object) -> str:
    """What a JSON value is, in words.

    >>> kind_of(None), kind_of([]), kind_of(True), kind_of(0.5)
    ('null', 'a list', 'a boolean', 'a number')
    """
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), "an object")


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line of a UTF-8 file that is not blank, without its end; a byte order mark is dropped.

    Raises:
        DatasetError: the file cannot be read, or is no UTF-8 text.
    """
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                reason = f"is not UTF-8 text ({error.reason}); convert the file first"
                raise DatasetError(f"{path}, line {number} {reason}") from error
            if line.strip():
                yield number, line


def json_of(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        DatasetError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads("\n".join(line for _, line in lines_of(path)))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{str(path)!r} is not JSON: {error}") from error


def records_of(path: Path) -> Iterator[Record]:
    """The objects of a JSON Lines file.

    Raises:
        DatasetError: the file cannot be read, or a line is no JSON object; it is named.
    """
    for number, line in lines_of(path):
        yield Record.parsed(line, f"{path}, line {number}: ")


def cells_of(path: Path, expected: Sequence[str], separator: str | None = "\t") -> Iterator[tuple[str, list[str]]]:
    """Place and cells of each line of a table; a separator of None is any white space.

    Raises:
        DatasetError: the file cannot be read, or a line has not the cells that are expected.
    """
    for number, line in lines_of(path):
        where, cells = f"{path}, line {number}", line.split(separator)
        if len(cells) != len(expected):
            raise DatasetError(
                f"{where}: expected {', '.join(expected[:-1])} and {expected[-1]} between tabs, got {len(cells)} cells"
            )
        yield where, cells


def digest_of_files(paths: Sequence[Path]) -> str:
    """Hex SHA-256 over the contents of files, in this order, unpacked.

    Raises:
        DatasetError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with _opened(path) as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with opened(str(path)) as file:
            yield file.bytes
    except READ_ERRORS as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error}") from error
    except (InputError, ExtraNotInstalledError) as error:
        raise DatasetError(str(error)) from error
