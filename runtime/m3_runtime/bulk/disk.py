"""Files that are on disk when we say so, and errors of the disk in words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from m3_runtime.errors import BulkError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what became of a file, and what to do, where writing fails.

    Raises:
        BulkError: the system refused: no room, no right, a broken disk.
    """
    try:
        yield
    except OSError as error:
        raise BulkError(
            f"cannot write {str(path)!r}: {error.strerror or error}; finished shards are kept: "
            "make room (or whatever it lacks) and run the same command again"
        ) from error


@contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """A new file, on disk when the block ends, gone when the block fails: room may be what is lacking."""
    try:
        with path.open("wb") as file:
            yield file
            flush(file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def flush(file: BinaryIO | FileIO) -> None:
    """Wait until what was written is on disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    if os.name == "nt":  # folders cannot be opened there, and names need no flush
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
