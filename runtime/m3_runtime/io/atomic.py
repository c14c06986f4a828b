"""Files that are whole or absent, whatever happens while they are written: a full disk, a kill, a power cut.

A file is written next to its target under another name, flushed to disk, and renamed; then its folder is flushed, so
that the new name is on disk too. Nothing here knows the errors of this project: callers translate `OSError`.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the name `target` when the block ends and vanishes if the block fails.

    A target that exists is replaced; its folder must exist. Where it is a symbolic link, the link stays and the file it
    points at is replaced.

    Raises:
        OSError: the target is no file, or the file cannot be written, flushed or renamed. An older file is then
            untouched.
    """
    path = Path(os.path.realpath(target))
    if path.exists() and not path.is_file():  # a rename would put a file in the place of a device, /dev/null even
        raise OSError(errno.EEXIST, "no file, but a folder, device or pipe, which is not replaced", str(target))
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    with new_file(partial) as file:
        yield file
    try:
        put_in_place(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(target: Path, data: bytes) -> None:
    """`whole_file` for content that is at hand.

    Raises:
        OSError: as `whole_file`.
    """
    with whole_file(target) as file:
        file.write(data)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that is on disk when the block ends, and removed if the block fails.

    Raises:
        OSError: there is such a file already, or it cannot be written or flushed.
    """
    file = path.open("xb")  # outside the block below, which must not remove the file of somebody else
    try:
        with file:
            yield file
            flush(file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def put_in_place(finished: Path, target: Path) -> None:
    """Rename a file or folder that is on disk; its new name is on disk when this returns.

    Raises:
        OSError: it cannot be renamed, or the folder of `target` cannot be flushed.
    """
    finished.replace(target)
    flush_folder(target.parent)


def flush(file: BinaryIO | FileIO) -> None:
    """Wait until what was written to an open file is on disk.

    Raises:
        OSError: it cannot be flushed.
    """
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, where the file system can flush folders.

    Raises:
        OSError: the disk failed.
    """
    if os.name == "nt":  # folders cannot be opened there, and names need no flush
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # what network file systems answer
            raise
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """Wait until a folder and everything in it is on disk.

    Raises:
        OSError: the disk failed.
    """
    for path in folder.rglob("*"):
        if path.is_dir():
            flush_folder(path)
        else:
            with path.open("rb") as file:
                flush(file)
    flush_folder(folder)
