"""A bulk job: its inputs and settings, which alone decide its output. Two runs of one job write the same shards."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from m3_runtime.bundle.manifest import Head
from m3_runtime.errors import InputError
from m3_runtime.io.readers import FORMAT_OF_ENDING, STDIN, Columns, RawRow, SourceFormat, format_of, raw_rows

FORMAT = 1
"""Version of the output folder; a release that writes something else counts up."""

_ENDS_BYTES = 1 << 16


class ShardDenseDtype(StrEnum):
    """How dense vectors are written."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class ShardColbertDtype(StrEnum):
    """How ColBERT rows are written; int8 comes with a scale for each row."""

    FLOAT16 = "float16"
    INT8 = "int8"


class OnLong(StrEnum):
    """What to do with a text of more than `max_length` tokens."""

    TRUNCATE = "truncate"
    REJECT = "reject"


@dataclass(frozen=True)
class VectorSettings:
    """Which vectors are made of a text, and how they are written.

    Attributes:
        heads: at least one.
        max_length: tokens per text, both special tokens included.
        on_long: what to do with longer texts.
        dense_dtype: of dense vectors.
        colbert_dtype: of ColBERT rows.
        colbert_pool: how many ColBERT rows become one, on average; 1 keeps all.
    """

    heads: tuple[Head, ...]
    max_length: int
    on_long: OnLong = OnLong.TRUNCATE
    dense_dtype: ShardDenseDtype = ShardDenseDtype.FLOAT32
    colbert_dtype: ShardColbertDtype = ShardColbertDtype.FLOAT16
    colbert_pool: int = 1


@dataclass(frozen=True)
class SourceFile:
    """A file of texts.

    Attributes:
        path: as it was given; rows without an id are called by it.
        format: how it is read.
        size_bytes: of the file, packed if it is gzipped.
        ends_sha256: of its first and last 64 KiB; enough to notice another file without reading it twice.
    """

    path: str
    format: SourceFormat
    size_bytes: int
    ends_sha256: str

    def rows(self, columns: Columns) -> Iterator[RawRow]:
        """Yield its rows; see `raw_rows`.

        Raises:
            InputError: the file cannot be read, or lacks a column.
        """
        return raw_rows(self.path, self.format, columns)


@dataclass(frozen=True)
class BulkJob:
    """A job, as the first line of its journal keeps it.

    Attributes:
        space_id: of the bundle.
        variant: that encodes.
        vectors: which vectors to make.
        shard_rows: rows of the input in a shard, bad ones included.
        columns: which columns to read.
        sources: the files, in order.
        format: of the output folder.
    """

    space_id: str
    variant: str
    vectors: VectorSettings
    shard_rows: int
    columns: Columns
    sources: tuple[SourceFile, ...]
    format: int = FORMAT


def difference(begun: BulkJob, asked: BulkJob) -> str | None:
    """The first difference between two jobs, in words; None if they are the same.

    Args:
        begun: the job of an existing folder.
        asked: the job to run now.
    """
    if begun.vectors != asked.vectors:
        return _first_difference(begun.vectors, asked.vectors)
    if begun.columns != asked.columns:
        return _first_difference(begun.columns, asked.columns, " column")
    if [one.path for one in begun.sources] == [one.path for one in asked.sources]:
        changed = [new.path for old, new in zip(begun.sources, asked.sources, strict=True) if old != new]
        if changed:
            return f"{changed[0]!r} has changed since"
    return _first_difference(begun, asked)


def _first_difference(begun: object, asked: object, suffix: str = "") -> str | None:
    for field in fields(begun):  # type: ignore[arg-type]
        old, new = getattr(begun, field.name), getattr(asked, field.name)
        if old != new:
            return f"{field.name.replace('_', ' ')}{suffix}: begun with {_shown(old)}, now {_shown(new)}"
    return None


def _shown(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    names = [item.path if isinstance(item, SourceFile) else str(item) for item in value]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def find_sources(inputs: Sequence[str], source_format: SourceFormat | None = None) -> tuple[SourceFile, ...]:
    """The files to read, in the order given; those of a folder by name.

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
    if name == STDIN:
        raise InputError("standard input cannot be read again after a crash; write the texts to a file first")
    if not path.is_dir():
        return [path]
    found = [one for one in sorted(path.iterdir()) if one.is_file() and one.name[0] not in "._" and format_of(one.name)]
    if not found:
        endings = ", ".join(FORMAT_OF_ENDING)
        raise InputError(f"folder {name!r} has no file that ends in {endings}, or one of these and .gz")
    return found


def _described(path: Path, source_format: SourceFormat | None) -> SourceFile:
    chosen = source_format or format_of(path.name) or SourceFormat.LINES
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
