"""Reading text files, gzipped or not, so that an error names the file and the line."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from m3_bench.errors import DatasetError

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Row:
    """A JSON object and where it is, for errors."""

    where: str
    values: Mapping[str, Any]

    def text(self, key: str, *, default: str | None = None) -> str:
        """The text under a key; `default` where the key is missing or null.

        Raises:
            DatasetError: there is no such key, or it holds something else.
        """
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        where = f"{self.where}: {key!r}" + ("" if key in self.values else ", which is missing,")
        if not isinstance(value, str):
            raise DatasetError(f"{where} must be a text, got {type(value).__name__}")
        if has_lone_surrogate(value):
            raise DatasetError(f"{where} has half of a surrogate pair, which is no character; write it again as UTF-8")
        return value

    def identifier(self, *keys: str) -> str:
        """The id under the first of these keys that exists; a number counts as its digits.

        Raises:
            DatasetError: none exists, or it is neither text nor a whole number.
        """
        key = next((key for key in keys if key in self.values), None)
        if key is None:
            has = ", ".join(map(repr, self.values)) or "(none)"
            raise DatasetError(f"{self.where}: expected an id under {' or '.join(map(repr, keys))}, got keys {has}")
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise DatasetError(f"{self.where}: {key!r} must be an id (text or a whole number), got {value!r}")
        return str(value)

    def rows(self, key: str) -> Iterator["Row"]:
        """The objects of the list under a key.

        Raises:
            DatasetError: it is no list of objects.
        """
        value = self.values.get(key)
        if not isinstance(value, list):
            raise DatasetError(f"{self.where}: {key!r} must be a list, got {type(value).__name__}")
        for number, one in enumerate(value):
            if not isinstance(one, dict):
                raise DatasetError(f"{self.where}: {key}[{number}] must be an object, got {type(one).__name__}")
            yield Row(f"{self.where}: {key}[{number}]", one)


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, as JSON can spell it."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


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


def rows_of(path: Path) -> Iterator[Row]:
    """The objects of a JSON Lines file.

    Raises:
        DatasetError: the file cannot be read, or a line is no JSON object; it is named.
    """
    for number, line in lines_of(path):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{where} is not JSON ({error}); expected one object on each line") from error
        if not isinstance(value, dict):
            raise DatasetError(f"{where}: expected a JSON object, got {type(value).__name__}")
        yield Row(where, value)


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
def _opened(path: Path) -> Iterator[gzip.GzipFile | BufferedReader]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error}") from error
