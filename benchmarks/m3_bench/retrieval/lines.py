"""Reading text files, compressed or not, by what their rows must be: an error names the file, the line and the key."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from m3_bench.errors import DatasetError
from m3_runtime.errors import ExtraNotInstalledError, InputError
from m3_runtime.io.opened import opened

_PIECE_BYTES = 1 << 20


class Record(BaseModel):
    """A JSON object that has these keys, and any others."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


_R = TypeVar("_R", bound=Record)


def _digits(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Identifier = Annotated[str, BeforeValidator(_digits), Field(min_length=1)]
"""An id: a text, or a whole number, which counts as its digits."""


def parsed(kind: type[_R], text: str, where: str = "") -> _R:
    """The record that a JSON text is; `where` comes first in errors.

    Raises:
        DatasetError: it is none.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in first["loc"]).removeprefix(".")
        hint = kind.model_fields[key].description if key in kind.model_fields else None
        got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r:.80}"
        words = [f"{key}: {first['msg']}{got}" if key else f"{first['msg']}{got}", *([hint] if hint else [])]
        raise DatasetError(where + "; ".join(words)) from error


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


def records_of(kind: type[_R], path: Path) -> Iterator[_R]:
    """The objects of a JSON Lines file.

    Raises:
        DatasetError: the file cannot be read, or a line is no such object; it is named.
    """
    for number, line in lines_of(path):
        yield parsed(kind, line, f"{path}, line {number}: ")


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
    except (InputError, ExtraNotInstalledError) as error:
        raise DatasetError(str(error)) from error
