"""A file of texts as a stream of bytes: unpacked, refused where its content is not what its name says, and watched.

A file that is written to, cut or replaced while it is read gives rows of two states. It is noticed when its end is
reached: then the file must be as it was at the beginning.
"""

import bz2
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from m3_runtime.errors import InputError
from m3_runtime.extras import import_extra
from m3_runtime.io.formats import STDIN, Packing, packing_of

_READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a damaged file may raise."""

_HEAD_BYTES = 4096
_CONTENTS = {
    b"PK\x03\x04": "a zip archive; unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"PAR1\x15": "Parquet; let its name end in .parquet",
    b"%PDF-": "PDF; extract its text",
    b"SQLite format 3\0": "an SQLite database; export a table as CSV",
    b"ARROW1\0": "an Arrow file; write it as Parquet",
    b"Obj\x01": "an Avro file; write it as Parquet",
    b"ORC\n": "an ORC file; write it as Parquet",
}
_PACKED = {
    b"\x1f\x8b": Packing.GZIP,
    b"BZh": Packing.BZIP2,
    b"\xfd7zXZ\0": Packing.XZ,
    b"\x28\xb5\x2f\xfd": Packing.ZSTD,
    b"\x04\x22\x4d\x18": Packing.LZ4,
}
_BZIP2_BLOCK = b"1AY&SY"  # behind a digit; "BZh" alone may begin a text
_TAR = (257, b"ustar")
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True)
class FileState:
    """What changes when a file is written to, cut or replaced: which file a path names, its size, its last change."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: str) -> "FileState | None":
        """The state of a regular file; None for pipes and devices, which change by being read.

        Raises:
            OSError: there is no such file.
        """
        found = Path(path).stat()
        if not stat.S_ISREG(found.st_mode):
            return None
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def check_unchanged(path: str, before: FileState | None) -> None:
    """Refuse what was read of a file that is not as it was.

    Raises:
        InputError: it is another, or was written to, since `before`.
    """
    try:
        now = FileState.of(path)
    except OSError as error:
        raise InputError(f"{path!r} was removed while it was read; put it back, and begin again") from error
    if now != before:
        raise InputError(
            f"{path!r} was changed while it was read, so its rows may be of two states; "
            "begin again, in another folder, once nothing writes to it"
        )


@dataclass(frozen=True)
class Opened:
    """A file's bytes, unpacked, and how far into the file itself was read; 0 where it has no positions."""

    bytes: BinaryIO
    position: Callable[[], int]


@contextmanager
def opened(path: str, so_far: Callable[[], str] = str) -> Iterator[Opened]:
    """Open a file of texts; "-" is standard input.

    `so_far` is how far it was read, in words that begin with a blank, for the error where it is damaged.

    Raises:
        InputError: it cannot be opened, holds something else than its name says, is damaged, or changed until its end
            was read.
        ExtraNotInstalledError: it is zstd or lz4, and pyarrow is not installed.
    """
    is_stdin = path == STDIN
    try:
        before = None if is_stdin else FileState.of(path)
        raw: BinaryIO = sys.stdin.buffer if is_stdin else Path(path).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"cannot read {path!r}: {error.strerror}") from error
    try:
        with ExitStack() as stack:
            if not is_stdin:
                stack.enter_context(raw)
            file = stack.enter_context(unpacked(raw, packing_of(path)))
            _check_content(path, _head(file))
            yield Opened(file, raw.tell if raw.seekable() else int)
    except _READ_ERRORS as error:
        raise InputError(f"cannot read {path!r}{so_far()}: {error}") from error
    if before is not None:
        check_unchanged(path, before)


@contextmanager
def unpacked(raw: BinaryIO, packing: Packing | None) -> Iterator[BinaryIO]:
    """The bytes that a compressed file stands for.

    Raises:
        ExtraNotInstalledError: zstd and lz4 need pyarrow.
    """
    match packing:
        case None:
            yield raw
        case Packing.GZIP:
            with gzip.GzipFile(fileobj=raw) as file:
                yield cast("BinaryIO", file)
        case Packing.BZIP2:
            with bz2.BZ2File(raw) as file:
                yield cast("BinaryIO", file)
        case Packing.XZ:
            with lzma.LZMAFile(raw) as file:
                yield cast("BinaryIO", file)
        case Packing.ZSTD | Packing.LZ4:
            with io.BufferedReader(_ArrowStream(raw, packing)) as file:
                yield file


class _ArrowStream(io.RawIOBase):
    """What pyarrow unpacks, as a stream of Python's."""

    def __init__(self, raw: BinaryIO, packing: Packing) -> None:
        name = "zstd" if packing is Packing.ZSTD else "lz4"
        self._stream: Any = import_extra("pyarrow", "bulk").CompressedInputStream(raw, name)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _head(file: BinaryIO) -> bytes:
    """The first bytes of a stream, which stay to be read."""
    if isinstance(file, io.BufferedReader):
        return file.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    at = file.tell()
    head = file.read(_HEAD_BYTES)
    file.seek(at)
    return head


def _check_content(path: str, head: bytes) -> None:
    """Refuse bytes that are no UTF-8 text, by how they begin."""
    shown, name = ("standard input", "") if path == STDIN else (repr(path), os.path.basename(path))  # noqa: PTH119
    for start, packing in _PACKED.items():
        if head.startswith(start) and (packing is not Packing.BZIP2 or head[4:].startswith(_BZIP2_BLOCK)):
            raise InputError(f"{shown} is {packing.name.lower()}; {_named(packing) if name else 'unpack it first'}")
    for start, what in _CONTENTS.items():
        if head.startswith(start):
            raise InputError(f"{shown} is {what}")
    if head.startswith(_TAR[1], _TAR[0]):
        raise InputError(f"{shown} is a tar archive; unpack it")
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    charset, remark = encoding, ""
    if encoding is None and head.count(0) * 4 > len(head):
        # of texts in Latin letters the upper byte is zero
        charset = "UTF-16BE" if head[::2].count(0) > head[1::2].count(0) else "UTF-16LE"
        encoding, remark = "UTF-16", ", or no text at all: it has so many zero bytes"
    if encoding is not None:
        raise InputError(
            f"{shown} is {encoding}{remark}; texts are read as UTF-8. Convert it: "
            f"iconv -f {charset} -t UTF-8 {name} > converted"
        )


def _named(packing: Packing) -> str:
    return f"let its name end in {packing}"
