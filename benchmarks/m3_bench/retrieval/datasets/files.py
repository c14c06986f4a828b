"""Reading text files, gzipped or not, so that an error names the file and the line."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3_bench.errors import DatasetError

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Row:
    """A line of a JSON Lines file: where it is, and the object it holds."""

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
        return as_text(value, f"{self.where}: {key!r}" + ("" if key in self.values else ", which is missing,"))

    def identifier(self, *keys: str) -> str:
        """The id under the first of these keys that is there; a number counts as its digits.

        Raises:
            DatasetError: none is there, or it is neither text nor a whole number.
        """
        key = next((key for key in keys if key in self.values), None)
        if key is None:
            raise DatasetError(f"{self.where}: expected an id under {' or '.join(map(repr, keys))}, got {_keys(self)}")
        return as_identifier(self.values[key], f"{self.where}: {key!r}")


def as_text(value: object, where: str) -> str:
    """The value, if it is text that can be encoded.

    Raises:
        DatasetError: it is not.
    """
    if not isinstance(value, str):
        raise DatasetError(f"{where} must be a text, got {type(value).__name__}")
    if has_lone_surrogate(value):
        raise DatasetError(
            f"{where} has half of a surrogate pair, which is no character; write the text again as UTF-8"
        )
    return value


def as_identifier(value: object, where: str) -> str:
    """The value as an id.

    Raises:
        DatasetError: neither text nor a whole number, or empty.
    """
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DatasetError(f"{where} must be an id (text or a whole number), got {value!r}")
    return str(value)


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, as JSON can spell it."""
    return any("\ud800" <= character <= "\udfff" for character in text) if not text.isascii() else False


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, one at a time, without their ends; a byte order mark is dropped.

    Raises:
        DatasetError: the file cannot be read, or is no UTF-8 text.
    """
    try:
        with _opened(path) as file:
            for number, raw in enumerate(file, start=1):
                yield (
                    _decoded(raw, f"{path}, line {number}").removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")
                )
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error}") from error


def json_of(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        DatasetError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads("\n".join(lines_of(path)))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{str(path)!r} is not JSON: {error}") from error


def rows_of(path: Path) -> Iterator[Row]:
    """The objects of a JSON Lines file; blank lines are passed over.

    Raises:
        DatasetError: the file cannot be read, or a line is no JSON object; it is named.
    """
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield Row(where, _object(line, where))


def cells_of(path: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """Line number and cells of each line of a tab-separated file; blank lines are passed over.

    Raises:
        DatasetError: the file cannot be read.
    """
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            yield number, line.split("\t")


def digest_of(paths: Sequence[Path]) -> str:
    """Hex SHA-256 over the contents of files, in this order, unpacked.

    Raises:
        DatasetError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            with _opened(path) as file:
                while piece := file.read(_PIECE_BYTES):
                    digest.update(piece)
        except (OSError, EOFError, zlib.error) as error:
            raise DatasetError(f"{str(path)!r} cannot be read: {error}") from error
    return digest.hexdigest()


def first_of(folder: Path, *names: str) -> Path | None:
    """The first of these files that a folder has, plain or with .gz."""
    candidates = (folder / (name + end) for name in names for end in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where} is not UTF-8 text ({error.reason}); convert the file first") from error


def _object(line: str, where: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where} is not JSON ({error}); expected one object on each line") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _keys(row: Row) -> str:
    return f"keys {', '.join(map(repr, row.values)) or '(none)'}"
