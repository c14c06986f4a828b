"""The files of a job: found in folders, described so that another file is noticed, and watched while they are read."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from m3_runtime.errors import InputError
from m3_runtime.io.formats import STDIN, SourceFormat, endings_in_words, format_of
from m3_runtime.io.opened import FileState, check_unchanged
from m3_runtime.io.output import identities
from m3_runtime.io.readers import known_format, raw_rows
from m3_runtime.io.rows import Columns, RawRow

_ENDS_BYTES = 1 << 16
_MOST_NAMES = 4
_TABLES = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}
"""Folders by which a table's own log is known: it says which of the files count."""


@dataclass(frozen=True)
class SourceFile:
    """A file of texts.

    Attributes:
        path: as it was given; rows without an id are called by it.
        format: how it is read.
        size_bytes: of the file, packed if it is compressed.
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
class FoundSources:
    """The files to read, in order; and in words what their folders have besides, if anything."""

    files: tuple[SourceFile, ...]
    left_out: tuple[str, ...]


def find_sources(inputs: Sequence[str], source_format: SourceFormat | None = None) -> FoundSources:
    """The files to read, in the order given; those of a folder and of the folders in it by their path.

    Args:
        inputs: files and folders. Of a folder, files with a known ending are taken, or with `source_format` all;
            never those whose name begins with "_" or ".", and no checksums (.crc), which Spark and Hive write too.
        source_format: of every file; None goes by the ending.

    Raises:
        InputError: there is no such file, its format is not known, a folder has none or cannot be looked into, or a
            file is named twice.
    """
    paths: list[Path] = []
    left_out: list[str] = []
    for name in inputs:
        if name == STDIN:
            raise InputError("standard input cannot be read again after a crash; write the texts to a file first")
        if not Path(name).is_dir():
            paths.append(Path(name))
            continue
        try:
            taken, others = _files_of(name, source_format)
        except OSError as error:
            raise InputError(
                f"cannot read {str(error.filename)!r}: {error.strerror}; make it readable, or name the files to read"
            ) from error
        paths += taken
        left_out += [f"left out of {name!r}: {_some(others)}"] if others else []
    seen: set[Path] = set()
    for path in paths:
        if (real := path.resolve()) in seen:
            raise InputError(f"{str(path)!r} is named twice; its rows would be encoded twice, so name it once")
        seen.add(real)
    return FoundSources(tuple(_described(path, source_format) for path in paths), tuple(left_out))


def check_beginnings(sources: Sequence[SourceFile], columns: Columns) -> None:
    """Read the beginning of every file, so that a wrong column of the last one is noticed before the first is encoded.

    Raises:
        InputError: a file cannot be read, or lacks a column.
    """
    for source in sources:
        with closing(source.rows(columns)) as rows:  # type: ignore[type-var]  # it is a generator
            next(rows, None)


def check_apart(out: Path, inputs: Sequence[str]) -> None:
    """Refuse an output folder that is in an input or has one in it, by whatever path, link or mount.

    Raises:
        InputError: they are not apart.
    """
    if out.is_symlink() and not out.exists():
        raise InputError(f"{str(out)!r} is a link to nothing; make the folder, or choose another name")
    above = identities([out.resolve(), *out.resolve().parents])
    for name in inputs:
        if Path(name).is_dir():
            for folder, _, _ in os.walk(name):
                if identities([folder]) & above:
                    raise InputError(
                        f"the output folder {str(out)!r} is in the input {name!r}; its files would be taken for texts, "
                        "so choose a folder outside"
                    )
        if identities([out]) & identities([name, *Path(name).resolve().parents]):
            raise InputError(f"the input {name!r} is in the output folder {str(out)!r}; choose another folder")


class SourceWatch:
    """Notices files that change between the moment in which a job was described and its end."""

    def __init__(self) -> None:
        self._begun: dict[str, FileState | None] = {}

    def begin(self, source: SourceFile) -> None:
        """A file is about to be read.

        Raises:
            InputError: it is not the file that was described.
        """
        try:
            self._begun[source.path] = FileState.of(source.path)
        except OSError as error:
            raise InputError(f"cannot read {source.path!r}: {error.strerror}") from error
        if _described(Path(source.path), source.format) != source:
            raise InputError(f"{source.path!r} has changed since the job began; choose another folder")

    def check(self, *, current: bool = False) -> None:
        """Check every file that was read, or the `current` one: those before were checked when their end was reached.

        Raises:
            InputError: one has changed since it was opened.
        """
        for path, before in list(self._begun.items())[-1 if current else 0 :]:
            check_unchanged(path, before)


def _files_of(name: str, source_format: SourceFormat | None) -> tuple[list[Path], list[str]]:
    """The files of a folder to read, and the names of the others."""
    taken: list[Path] = []
    others: list[str] = []
    for at, folders, files in os.walk(name, onerror=_raised):
        _check_no_table(name, at, folders)
        hidden = [folder for folder in folders if folder[0] in "._" or (Path(at) / folder).is_symlink()]
        others += [f"{os.path.relpath(os.path.join(at, folder), name)}/" for folder in hidden]  # noqa: PTH118
        folders[:] = [folder for folder in folders if folder not in hidden]
        for file in files:
            path = Path(at) / file
            is_known = format_of(file) is not None or source_format is not None
            is_text = file[0] not in "._" and not file.endswith(".crc") and path.is_file()
            if is_known and is_text:
                taken.append(path)
            else:
                others.append(os.path.relpath(path, name))
    if not taken:
        seen = f"; it has {_some(others)}, which --input-format makes readable" if others else ""
        raise InputError(f"folder {name!r} has no file that ends in {endings_in_words()}{seen}")
    return sorted(taken, key=lambda path: path.relative_to(name).parts), sorted(others)


def _raised(error: OSError) -> None:
    """`os.walk` passes over a folder that it cannot look into: then nobody would know what was left out."""
    raise error


def _check_no_table(name: str, at: str, folders: Sequence[str]) -> None:
    kind = next((_TABLES[folder] for folder in folders if folder in _TABLES), None)
    if kind is None and "metadata" in folders and any((Path(at) / "metadata").glob("*.metadata.json")):
        kind = "Iceberg"
    if kind is not None:
        raise InputError(
            f"folder {name!r} is a table of {kind} ({at}): its log says which files count, and it is not read here; "
            "write the table as plain Parquet"
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _described(path: Path, source_format: SourceFormat | None) -> SourceFile:
    try:
        if not path.is_file():
            raise InputError(f"cannot read {str(path)!r}: {'not a file' if path.exists() else 'no such file'}")
        chosen = known_format(str(path), source_format)
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
