"""Pieces of the full vocabulary that a bundle has no embedding row of: known by name, so that a text with one is told.

An encoder must know when the full vocabulary would have split a text otherwise. As Python strings in a dict the 210 000
pieces that a bundle of a few languages lacks would take as much memory as is gained. Here they are four arrays, and a
table of one byte for each of 2^21 checksums that tells most strings at once that they are no piece.

    dropped_pieces.npz    checksums (D,) uint32, ascending: CRC-32 of each piece as UTF-8
                          ids (D,) int32; ends (D,) uint32: where its text ends in `text`
                          text (bytes,) uint8: all pieces as UTF-8, in this order
"""

from array import array
from bisect import bisect_left
from collections.abc import Mapping
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from m3_runtime.errors import BundleDamagedError

DROPPED_PIECES_NAME = "dropped_pieces.npz"

_SLOTS = 1 << 21
_KINDS = {"checksums": np.uint32, "ids": np.int32, "ends": np.uint32, "text": np.uint8}


class DroppedPieces:
    """D pieces with their ids. Safe to use from several threads.

    >>> pieces = DroppedPieces({7: "▁ystävä", 9: "vät"})
    >>> pieces.id_of("vät"), pieces.id_of("va"), pieces.text_of(7), pieces.longest
    (9, None, '▁ystävä', 7)
    """

    def __init__(self, pieces: Mapping[int, str]) -> None:
        """Take over pieces, by id."""
        encoded = sorted((crc32(data), number, data) for number, data in ((n, p.encode()) for n, p in pieces.items()))
        self._hold(
            np.array([one[0] for one in encoded], np.uint32),
            np.array([one[1] for one in encoded], np.int32),
            np.cumsum([len(one[2]) for one in encoded], dtype=np.uint32),
            b"".join(one[2] for one in encoded),
        )

    @classmethod
    def open(cls, path: Path, vocab_size: int) -> "DroppedPieces":
        """Read the file; ids must be below `vocab_size`.

        Raises:
            BundleDamagedError: it is not what `save` writes.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                checksums, ids, ends, text = (file[name] for name in _KINDS)
            found = cls.__new__(cls)
            _check(checksums, ids, ends, text, vocab_size)
            found._hold(checksums, ids, ends, text.tobytes())
        except Exception as error:  # numpy, zipfile and zlib raise many kinds
            raise BundleDamagedError(f"{str(path)!r} is damaged ({error}); copy or export the bundle again") from error
        return found

    def save(self, path: Path) -> None:
        """Write the file; the same pieces give the same bytes."""
        text = np.frombuffer(self._text, np.uint8)
        with path.open("wb") as file:
            np.savez(file, checksums=np.array(self._checksums, np.uint32), ids=self.ids, ends=self._ends, text=text)

    @property
    def longest(self) -> int:
        """Characters of the longest piece."""
        return self._longest

    def id_of(self, piece: str) -> int | None:
        """The id of a piece; None if it is none of these."""
        data = piece.encode()
        checksum = crc32(data)
        if not self._slots[checksum % _SLOTS]:
            return None
        place = bisect_left(self._checksums, checksum)
        while place < len(self._checksums) and self._checksums[place] == checksum:
            if self._piece(place) == data:
                return int(self.ids[place])
            place += 1
        return None

    def text_of(self, number: int) -> str:
        """The piece of an id, "" if it is none of these."""
        places = np.flatnonzero(self.ids == number)
        return self._piece(int(places[0])).decode() if places.size else ""

    def _hold(
        self, checksums: NDArray[np.uint32], ids: NDArray[np.int32], ends: NDArray[np.uint32], text: bytes
    ) -> None:
        self.ids, self._ends, self._text = ids, ends, text
        self._checksums = array("I", checksums.astype(np.dtype("I")).tobytes())  # bisect reads it twice as fast
        slots = np.zeros(_SLOTS, np.uint8)
        slots[checksums % _SLOTS] = 1
        self._slots = slots.tobytes()
        begins = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80  # of a character, in UTF-8
        counted = np.concatenate(([0], np.cumsum(begins)))[ends]
        self._longest = int(np.diff(counted, prepend=0).max())

    def _piece(self, place: int) -> bytes:
        start = int(self._ends[place - 1]) if place else 0
        return self._text[start : int(self._ends[place])]


def _check(
    checksums: NDArray[np.uint32],
    ids: NDArray[np.int32],
    ends: NDArray[np.uint32],
    text: NDArray[np.uint8],
    vocab_size: int,
) -> None:
    """Refuse arrays that no pieces have.

    Raises:
        ValueError: says which.
    """
    for values, (name, kind) in zip((checksums, ids, ends, text), _KINDS.items(), strict=True):
        if values.dtype != kind or values.ndim != 1:
            raise ValueError(f"{name}: expected one axis of {np.dtype(kind)}")
    if not len(checksums) == len(ids) == len(ends) > 0:
        raise ValueError("expected a checksum, an id and an end for each piece")
    if ids.min() < 0 or ids.max() >= vocab_size or np.unique(ids).size < ids.size:
        raise ValueError(f"expected ids from 0 to {vocab_size - 1}, each once")
    if (np.diff(checksums.astype(np.int64)) < 0).any() or (np.diff(ends.astype(np.int64)) < 0).any():
        raise ValueError("expected ascending checksums and ends")
    if ends[-1] != text.size:
        raise ValueError(f"expected {ends[-1]} bytes of text, got {text.size}")
