"""Which files are read, in which order, and how they are known again when a job resumes."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from m3_runtime.bulk import lines, tables
from m3_runtime.bulk.rows import Columns, RawRow
from m3_runtime.errors import InputError

_ENDS_BYTES = 1 << 16
_GZIP = ".gz"


class SourceFormat(StrEnum):
    """How a file is read."""

    LINES = "lines"
    JSONL = "jsonl"
    PARQUET = "parquet"


_BY_SUFFIX = {
    ".jsonl": SourceFormat.JSONL,
    ".ndjson": SourceFormat.JSONL,
    ".json": SourceFormat.JSONL,
    ".parquet": SourceFormat.PARQUET,
    ".pq": SourceFormat.PARQUET,
    ".txt": SourceFormat.LINES,
}


@dataclass(frozen=True)
class SourceFile:
    """A file of texts.

    Attributes:
        path: as it was given; rows without an id are called by it.
        format: how it is read.
        size_bytes: as it lies on disk.
        ends_sha256: of its first and last 64 KiB; enough to notice another file without reading it twice.
    """

    path: str
    format: SourceFormat
    size_bytes: int
    ends_sha256: str

    def rows(self, columns: Columns) -> Iterator[RawRow]:
        """Yield its rows, in order, a little of the file in memory at a time.

        Raises:
            InputError: the file cannot be read, or lacks a column.
        """
        if self.format is SourceFormat.PARQUET:
            return tables.raw_rows(self.path, columns)
        return lines.raw_rows(self.path, columns, is_jsonl=self.format is SourceFormat.JSONL)


def find_sources(inputs: Sequence[str], source_format: SourceFormat | None = None) -> tuple[SourceFile, ...]:
    """The files that are meant, in the order given; those of a folder by name.

    Args:
        inputs: files and folders. Of a folder, files with a known ending are taken.
        source_format: of every file; None goes by the ending, and an unknown one means lines.

    Raises:
        InputError: there is no such file, a folder has none, or a file is named twice.
    """
    paths = [path for name in inputs for path in _files_of(name)]
    seen: set[Path] = set()
    for path in paths:
        if (real := path.resolve()) in seen:
            raise InputError(f"{str(path)!r} is named twice; its rows would be encoded twice, so name it once")
        seen.add(real)
    return tuple(_described(path, source_format) for path in paths)


def _files_of(name: str) -> list[Path]:
    path = Path(name)
    if name == "-":
        raise InputError("standard input cannot be read again after a crash; write the texts to a file first")
    if not path.is_dir():
        return [path]
    found = [one for one in sorted(path.iterdir()) if one.is_file() and one.name[0] not in "._" and _by_ending(one)]
    if not found:
        raise InputError(f"folder {name!r} has no file that ends in {', '.join(_BY_SUFFIX)}, or one of these and .gz")
    return found


def _by_ending(path: Path) -> SourceFormat | None:
    name = path.name.lower().removesuffix(_GZIP)
    found = _BY_SUFFIX.get(Path(name).suffix)
    return None if found is SourceFormat.PARQUET and path.name.lower().endswith(_GZIP) else found


def _described(path: Path, source_format: SourceFormat | None) -> SourceFile:
    chosen = source_format or _by_ending(path) or SourceFormat.LINES
    try:
        if not path.is_file():
            raise InputError(f"cannot read {str(path)!r}: {'not a file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            size_bytes, digest = _ends(file)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from error
    return SourceFile(str(path), chosen, size_bytes, digest)


def _ends(file: BinaryIO) -> tuple[int, str]:
    digest = hashlib.sha256(file.read(_ENDS_BYTES))
    size_bytes = file.seek(0, 2)
    file.seek(max(0, size_bytes - _ENDS_BYTES))
    digest.update(file.read(_ENDS_BYTES))
    return size_bytes, digest.hexdigest()
