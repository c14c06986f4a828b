"""The pieces of a bundle in which not all have an embedding row: those that stay, and the names of those that do not.

An encoder must know when the full vocabulary would have split a text otherwise. As Python strings in a dict the 210 000
pieces that a bundle of a few languages lacks would take as much memory as is gained. Here they are three arrays, and a
table of one byte for each of 2^21 checksums that rules out most strings at once.

    pieces.npz    scores (V,) float64, by id
                  kept_ids (K,) int32, ascending; kept_ends (K,) uint32: where each text ends in kept_text
                  dropped_ids (D,) int32; dropped_ends (D,) uint32, in dropped_text; checksums (D,) uint32, ascending:
                  CRC-32 of each piece
                  kept_text, dropped_text (bytes,) uint8: pieces as UTF-8, one after the other

It is read in a tenth of the time that a tokenizer.json takes.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from m3_runtime.errors import BundleDamagedError

PIECES_NAME = "pieces.npz"

_SLOTS = 1 << 21
_KINDS = {
    "scores": np.float64, "kept_ids": np.int32, "kept_ends": np.uint32, "kept_text": np.uint8,
    "dropped_ids": np.int32, "dropped_ends": np.uint32, "dropped_text": np.uint8, "checksums": np.uint32,
}  # fmt: skip


class DroppedPieces:
    """D pieces with their ids. Safe to use from several threads.

    >>> pieces = DroppedPieces.of({7: "▁ystävä", 9: "vät"})
    >>> pieces.id_of("vät"), pieces.id_of("va"), pieces.text_of(7), pieces.longest
    (9, None, '▁ystävä', 7)

    Attributes:
        ids: (D,) in the order of checksums.
        longest: characters of the longest piece.
    """

    def __init__(
        self, ids: NDArray[np.int32], ends: NDArray[np.uint32], text: bytes, checksums: NDArray[np.uint32]
    ) -> None:
        """Take over arrays as the file has them; D is at least 1."""
        self.ids, self._ends, self._text = ids, ends, text
        self._checksums = array("I", checksums.astype(np.dtype("I")).tobytes())  # bisect reads it twice as fast
        slots = np.zeros(_SLOTS, np.uint8)
        slots[checksums % _SLOTS] = 1
        self._slots = slots.tobytes()
        begins = (np.frombuffer(text, np.uint8) & 0xC0) != 0x80  # of a character, in UTF-8
        starts = np.zeros(len(ends), np.int64)
        starts[1:] = ends[:-1]
        self.longest = int(np.add.reduceat(begins, starts, dtype=np.int32).max())

    @classmethod
    def of(cls, pieces: Mapping[int, str]) -> "DroppedPieces":
        """Pieces by id."""
        encoded = [(number, piece.encode()) for number, piece in pieces.items()]
        rows = sorted((crc32(data), number, data) for number, data in encoded)
        text, ends = _joined([data for _, _, data in rows])
        ids = np.array([number for _, number, _ in rows], np.int32)
        return cls(ids, ends, text, np.array([checksum for checksum, _, _ in rows], np.uint32))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the file holds of them."""
        return {
            "dropped_ids": self.ids,
            "dropped_ends": self._ends,
            "dropped_text": np.frombuffer(self._text, np.uint8),
            "checksums": np.array(self._checksums, np.uint32),
        }

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

    def items(self) -> Iterator[tuple[str, int]]:
        """All pieces with their ids."""
        for place, number in enumerate(self.ids.tolist()):
            yield self._piece(place).decode(), number

    def text_of(self, number: int) -> str:
        """The piece of an id, "" if it is none of these."""
        places = np.flatnonzero(self.ids == number)
        return self._piece(int(places[0])).decode() if places.size else ""

    def _piece(self, place: int) -> bytes:
        start = int(self._ends[place - 1]) if place else 0
        return self._text[start : int(self._ends[place])]


@dataclass(frozen=True)
class FewerPieces:
    """V pieces: `names` by id, "" for those without a row, which are in `dropped`; `scores` of all."""

    names: Sequence[str]
    scores: NDArray[np.float64]
    dropped: DroppedPieces

    @classmethod
    def of(cls, names: Sequence[str], scores: Sequence[float], kept_ids: Sequence[int]) -> "FewerPieces":
        """Keep some pieces of a vocabulary."""
        stays = set(kept_ids)
        left = [name if number in stays else "" for number, name in enumerate(names)]
        dropped = {number: name for number, name in enumerate(names) if number not in stays}
        return cls(left, np.array(scores, np.float64), DroppedPieces.of(dropped))

    @classmethod
    def open(cls, path: Path) -> "FewerPieces":
        """Read the file.

        Raises:
            BundleDamagedError: it is not what `save` writes.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                held: dict[str, NDArray[Any]] = {name: file[name] for name in _KINDS}
            _check(held)
            names, text, start = [""] * len(held["scores"]), held["kept_text"].tobytes(), 0
            for number, end in zip(held["kept_ids"].tolist(), held["kept_ends"].tolist(), strict=True):
                names[number], start = text[start:end].decode(), end
            text = held["dropped_text"].tobytes()
            dropped = DroppedPieces(held["dropped_ids"], held["dropped_ends"], text, held["checksums"])
        except Exception as error:  # numpy, zipfile and zlib raise many kinds
            raise BundleDamagedError(f"{str(path)!r} is damaged ({error}); copy or export the bundle again") from error
        return cls(names, held["scores"], dropped)

    def save(self, path: Path) -> None:
        """Write the file; the same pieces give the same bytes."""
        kept = [number for number, name in enumerate(self.names) if name]
        text, ends = _joined([self.names[number].encode() for number in kept])
        arrays: dict[str, Any] = {
            "scores": self.scores,
            "kept_ids": np.array(kept, np.int32),
            "kept_ends": ends,
            "kept_text": np.frombuffer(text, np.uint8),
            **self.dropped.arrays(),
        }
        with path.open("wb") as file:
            np.savez(file, **arrays)


def _joined(pieces: Sequence[bytes]) -> tuple[bytes, NDArray[np.uint32]]:
    return b"".join(pieces), np.cumsum([len(piece) for piece in pieces], dtype=np.uint32)


def _check(held: Mapping[str, NDArray[Any]]) -> None:
    """Refuse arrays that no pieces have.

    Raises:
        ValueError: says which.
    """
    for name, kind in _KINDS.items():
        if held[name].dtype != kind or held[name].ndim != 1:
            raise ValueError(f"{name}: expected one axis of {np.dtype(kind)}")
    total = len(held["scores"])
    ids = np.concatenate((held["kept_ids"], held["dropped_ids"]))
    if ids.size != total or ids.min() < 0 or ids.max() >= total or np.bincount(ids).max() > 1:
        raise ValueError(f"expected each id from 0 to {total - 1} once, kept or dropped")
    for which in ("kept", "dropped"):
        ends, text = held[f"{which}_ends"], held[f"{which}_text"]
        if not len(ends) == len(held[f"{which}_ids"]) > 0 or (np.diff(ends.astype(np.int64), prepend=0) <= 0).any():
            raise ValueError(f"{which}_ends: expected one for each id, ascending")
        if ends[-1] != text.size:
            raise ValueError(f"{which}_text: expected {ends[-1]} bytes, got {text.size}")
    checksums = held["checksums"]
    if len(checksums) != len(held["dropped_ids"]) or (np.diff(checksums.astype(np.int64)) < 0).any():
        raise ValueError("checksums: expected one for each dropped piece, ascending")
