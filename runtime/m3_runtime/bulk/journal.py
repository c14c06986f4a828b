"""The journal of a job: the job, and which of its shards are done. A line is written when its shard is in place.

    {"job": {…}}            the first line
    {"shard": {…}}          one for each shard, in the order in which they became done
    {"complete": {…}}       the last line, when nothing is left

A line that a crash cut off counts as not written.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from m3_runtime.bulk.job import BulkJob
from m3_runtime.errors import BulkError, BundleFormatError, InputError
from m3_runtime.io.atomic import flush
from m3_runtime.records import OPTIONAL, from_json, to_json

try:
    import fcntl
except ImportError:  # Windows: nothing can be locked
    fcntl = None  # type: ignore[assignment]

Entry = TypeVar("Entry")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file where writing fails, and say how to go on.

    Raises:
        BulkError: the system refused: no room, no permission, a broken disk.
    """
    try:
        yield
    except OSError as error:
        raise BulkError(
            f"cannot write {str(path)!r}: {error.strerror or error}; finished shards are kept: "
            "make room (or whatever is lacking) and run the same command again"
        ) from error


@dataclass(frozen=True, kw_only=True)
class ShardCounts:
    """What was counted while a shard was encoded.

    Attributes:
        index: which shard.
        rows: in its file; with 0 there is no file.
        rejected: rows that are not in the file.
        tokens: that were encoded, both special tokens of each text included.
        truncated: how many texts were cut.
        input_bytes: how much of the inputs the shard takes.
        out_of_vocabulary: how many texts have a piece that the bundle dropped.
    """

    index: int
    rows: int
    rejected: int
    tokens: int
    truncated: int
    input_bytes: int
    out_of_vocabulary: int = field(default=0, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class ShardDone(ShardCounts):
    """A shard that is done: the size of its file, and the length of `rejected.jsonl` when it was done."""

    size_bytes: int
    rejected_bytes: int


@dataclass(frozen=True)
class Complete:
    """Nothing is left. So many rows have an id that a row before them has; one such id."""

    shards: int
    repeated_ids: int = field(default=0, metadata=OPTIONAL)
    repeated_id: str = field(default="", metadata=OPTIONAL)


@dataclass(frozen=True)
class JournalText:
    """A journal's entries.

    `job` is None where it has no whole line, `complete` where something is left; `whole_bytes` of the file are whole
    lines.
    """

    job: BulkJob | None
    shards: tuple[ShardDone, ...]
    complete: Complete | None
    whole_bytes: int


def read_journal(data: bytes, name: str) -> JournalText:
    """Read a journal, whole or cut off anywhere; errors call it `name`.

    Raises:
        InputError: it is something else, of another release, or damaged before its last line.
    """
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    try:
        json.loads(lines[-1] if lines else "0")
    except ValueError:  # after a power cut the last line may hold anything
        del lines[-1]
    except RecursionError:  # but nothing so deep: that is an error below
        pass
    if not lines:
        return JournalText(None, (), None, 0)
    try:
        records = [json.loads(line) for line in lines]
        job = _record(BulkJob, records[0], "job", name)
        is_complete = list(records[-1]) == ["complete"]
        middle = records[1 : len(records) - is_complete]
        shards = tuple(_record(ShardDone, record, "shard", name) for record in middle)
        complete = _record(Complete, records[-1], "complete", name) if is_complete else None
        if any(number < 0 for entry in shards for number in vars(entry).values()):
            raise ValueError("a number is negative")
        if len({entry.index for entry in shards}) < len(shards):
            raise ValueError("a shard is there twice")
    except (ValueError, TypeError, RecursionError, BundleFormatError) as error:
        raise InputError(
            f"{name!r} is not a journal that this release reads ({error}); choose another folder"
        ) from error
    return JournalText(job, shards, complete, sum(map(len, lines)))


class Journal:
    """A journal that is open and locked: one process at a time may add to it. `text` is what it held then."""

    def __init__(self, file: FileIO, path: Path, text: JournalText) -> None:
        self._file, self._path, self.text = file, path, text

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator["Journal"]:
        """Open a journal, or begin an empty one; what a crash left of a line is cut away.

        That of a complete job needs nothing but reading: it opens on a read-only disk too.

        Raises:
            BulkError: another process is at work on it, or it cannot be written.
            InputError: it is no journal.
        """
        with _opened(path) as file:
            if file.writable():
                _lock(file, path)
            file.seek(0)
            data = file.read()
            text = read_journal(data, str(path))
            if text.whole_bytes < len(data) and file.writable():
                with writing(path):
                    file.truncate(text.whole_bytes)
            yield cls(file, path, text)

    @property
    def is_read_only(self) -> bool:
        """Whether the job is complete and nothing may be written."""
        return not self._file.writable()

    def add(self, entry: BulkJob | ShardDone | Complete) -> None:
        """Add a line; it is on disk when this returns.

        Raises:
            BulkError: it cannot be written.
        """
        kind = {BulkJob: "job", ShardDone: "shard", Complete: "complete"}[type(entry)]
        rest = (json.dumps({kind: to_json(entry)}) + "\n").encode()
        with writing(self._path):
            while rest:  # unbuffered, so that closing has nothing left to write; then a write may be a part of it
                rest = rest[self._file.write(rest) :]
            flush(self._file)


def _opened(path: Path) -> FileIO:
    """To add to; where that is not allowed, to read if the job is complete."""
    try:
        return path.open("a+b", buffering=0)
    except OSError as error:
        with suppress(OSError):
            if read_journal(path.read_bytes(), str(path)).complete is not None:
                return path.open("rb", buffering=0)
        with writing(path):
            raise error


def _record(cls: type[Entry], data: Mapping[str, Any], kind: str, name: str) -> Entry:
    if list(data) != [kind]:
        raise InputError(f"{name!r}: expected a line {kind!r}, got {list(data)}; choose another folder")
    return from_json(cls, data[kind], kind)


def _lock(file: FileIO, path: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BulkError(f"another process is at work on {str(path.parent)!r}; wait for it, or stop it") from error
    except OSError:
        return  # this file system has no locks
