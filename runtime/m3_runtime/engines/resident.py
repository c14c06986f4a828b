"""Giving memory back that a loaded engine keeps without need. Linux only; elsewhere nothing happens.

OpenVINO maps the weights and, when a projection first runs, packs its weights into memory of its own. The mapped pages
that were read for it stay resident: 300 MB for BGE-M3 that nobody reads again. The C library, too, keeps what loading
freed.

Why letting the pages go cannot change a result: only mappings without write permission are touched, whose pages hold
what the file holds and nothing else. A page that is needed after all is taken from the file again. And only mappings
that came about while the engine was opened are touched, which stay the engine's as long as it lives.
"""

import ctypes
import mmap
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

_MAPS = Path("/proc/self/maps")
_M_ARENA_MAX = -8  # of malloc.h
# One at a time, so that mappings which appear belong to the engine that is being opened.
_opening = threading.Lock()


@dataclass(frozen=True)
class _Mapping:
    """A line of /proc/self/maps: addresses, and what is mapped there."""

    start: int
    end: int
    permissions: str
    inode: str
    path: str


@dataclass
class MappedFiles:
    """The files that an engine has mapped; filled when its opening is over."""

    _mappings: frozenset[_Mapping] = field(default_factory=frozenset)

    def let_go(self) -> int:
        """Drop their resident pages, while the engine is open. Returns how many bytes of mappings were dropped."""
        inodes = tuple({f" {known.inode} " for known in self._mappings})
        # A mapping may have been split since, and its file renamed; it must still be the same file in the same place.
        return sum(
            _drop(now)
            for now in (_mappings(inodes) if inodes else ())
            if "w" not in now.permissions
            and any(k.start <= now.start and now.end <= k.end and now.inode == k.inode for k in self._mappings)
        )


@contextmanager
def mapping(folder: Path) -> Iterator[MappedFiles]:
    """Note which files of a folder are mapped inside the block; a link counts as the file that it leads to."""
    files = MappedFiles()
    with _opening:
        before = _mappings()
        yield files
        inside = {os.path.realpath(path) for path in folder.iterdir()}
        files._mappings = frozenset(m for m in _mappings() - before if m.path in inside)


def trim_heap() -> None:
    """Give what the C library keeps of freed memory back to the system (glibc has a call for it)."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def limit_heaps() -> None:
    """Have this process's threads share two heaps (glibc has a setting for it); for a process that is ours alone.

    Otherwise each thread gets a heap of its own, and each keeps fragments of what its largest batches took.
    """
    limit = getattr(_libc(), "mallopt", None)
    if limit is not None and "MALLOC_ARENA_MAX" not in os.environ:
        limit(_M_ARENA_MAX, 2)


def _mappings(marks: Sequence[str] = ("",)) -> frozenset[_Mapping]:
    """What this process has mapped; only the lines that hold one of `marks`."""
    if sys.platform != "linux" or not _MAPS.is_file():
        return frozenset()
    lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    return frozenset(_parsed(line) for line in lines if any(mark in line for mark in marks))


def _parsed(line: str) -> _Mapping:
    """`7f00-7f80 r--s 00000000 fe:01 42    /path with blanks`."""
    addresses, permissions, _, _, inode, *path = line.split(maxsplit=5)
    start, end = (int(address, 16) for address in addresses.split("-"))
    return _Mapping(start, end, permissions, inode, path[0] if path else "")


def _drop(mapped: _Mapping) -> int:
    size = mapped.end - mapped.start
    failed = _libc().madvise(ctypes.c_void_p(mapped.start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
    return 0 if failed else size


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)
