"""Smaller ColBERT rows: fewer dimensions, fewer rows, and values of 8, 4 or 1 bits. Pure functions.

A stored row is its integer levels times a scale of its own. Queries are not stored, so they stay in float: a score of a
float query with a stored passage loses less than one of two stored texts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.encode.pooling import pooled
from m3_runtime.errors import InputError
from m3_runtime.sequences import member


class ColbertDtype(StrEnum):
    """How ColBERT rows are handed out."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    INT4 = "int4"
    BINARY = "binary"

    @property
    def bits(self) -> int:
        """Of a value."""
        return {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "binary": 1}[self.value]

    @property
    def is_packed(self) -> bool:
        """Whether rows are `PackedRows`."""
        return self.bits <= 8

    @property
    def item(self) -> np.dtype[Any]:
        """What values are kept in; below 8 bits several of them share one."""
        return np.dtype(np.uint8 if self.bits < 8 else self.value)

    def width(self, dim: int) -> int:
        """Items of a row of so many values."""
        return -(-dim * self.bits // (8 * self.item.itemsize))

    def row_bytes(self, dim: int) -> int:
        """Bytes of a row of so many values, its scale with it.

        >>> [ColbertDtype(name).row_bytes(1024) for name in ("float16", "int8", "int4", "binary")]
        [2048, 1028, 516, 132]
        """
        return self.width(dim) * self.item.itemsize + (4 if self.is_packed else 0)


@dataclass(frozen=True, eq=False)
class PackedRows:
    """R ColBERT rows of C values, packed. numpy takes them for the (R, C) float32 matrix that they stand for.

    A value is its level times the scale of its row. Levels are -127 … 127 with int8, the odd numbers -15 … 15 with int4
    and -1, 1 with binary.

    Attributes:
        dtype: INT8, INT4 or BINARY.
        values: int8: (R, C) int8. int4: (R, ceil(C/2)) uint8, two codes (level + 15) / 2 in a byte, the earlier in its
            high half. binary: (R, ceil(C/8)) uint8, bits in `numpy.packbits`' order, 1 for what is not below 0.
        scales: (R,) float32.
        dim: C.
    """

    dtype: ColbertDtype
    values: NDArray[Any]
    scales: NDArray[np.float32]
    dim: int

    def __post_init__(self) -> None:
        """Check that the parts fit.

        Raises:
            InputError: they do not.
        """
        dtype = member(ColbertDtype, self.dtype, "dtype")
        if not dtype.is_packed:
            raise InputError(f"{dtype.value} rows are not packed: an array of them is all, and has no scales")
        object.__setattr__(self, "dtype", dtype)
        if not isinstance(self.values, np.ndarray) or not isinstance(self.scales, np.ndarray):
            kinds = f"{type(self.values).__name__} and {type(self.scales).__name__}"
            raise InputError(f"values and scales must be numpy arrays, got {kinds}")
        expected = (dtype.item, (self.scales.size, dtype.width(self.dim)), 1)
        if self.dim < 1 or (self.values.dtype, self.values.shape, self.scales.ndim) != expected:
            raise InputError(
                f"{dtype.value} rows of {self.dim} values must be {expected[1]} {dtype.item} and a scale for each row, "
                f"got {self.values.shape} {self.values.dtype} and {self.scales.shape} scales"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return len(self.values), self.dim

    @property
    def nbytes(self) -> int:
        """Memory of values and scales."""
        return self.values.nbytes + self.scales.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Of the (R, C) matrix."""
        return np.asarray(np.asarray(self)[index])

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter(np.asarray(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The (R, C) matrix, always a new one; `numpy.asarray` calls it.

        Raises:
            ValueError: `copy` is False.
        """
        if copy is False:
            raise ValueError("packed rows become a new array; leave copy=False out")
        if self.dtype is ColbertDtype.INT8:
            levels = self.values
        elif self.dtype is ColbertDtype.BINARY:
            levels = np.unpackbits(self.values, axis=1, count=self.dim).view(np.int8) * 2 - 1
        else:
            codes = np.stack([self.values >> 4, self.values & 15], axis=2).reshape(-1, 2 * self.values.shape[1])
            levels = codes[:, : self.dim].view(np.int8) * 2 - 15
        rows = levels * self.scales.astype(np.float32, copy=False)[:, None]
        return rows if dtype is None else rows.astype(dtype, copy=False)


@dataclass(frozen=True)
class ColbertForm:
    """How ColBERT rows are handed out.

    Attributes:
        dtype: of their values.
        axes: (C, D), what rows are projected on; None leaves them as they are.
        pool: how many rows of a text become one, on average; 1 keeps all.
    """

    dtype: ColbertDtype = ColbertDtype.FLOAT32
    axes: NDArray[np.float32] | None = field(default=None, compare=False)
    pool: int = 1

    def of(self, rows: NDArray[np.float32], *, normalize: bool) -> NDArray[Any] | PackedRows:
        """A text's rows (R, C) in this form; `normalize` as in `projected`.

        Raises:
            ExtraNotInstalledError: rows are pooled, and scipy is not installed.
        """
        kept = rows if self.axes is None else projected(rows, self.axes, normalize=normalize)
        return stored(pooled(kept, self.pool), self.dtype)


def stored(rows: NDArray[Any], dtype: ColbertDtype | str) -> NDArray[Any] | PackedRows:
    """Rows as they are handed out or written.

    Levels are even steps up to a row's own largest value. The scales of int4 and binary rows are such that a row's dot
    product with what is stored of it is that with itself, so that scores keep their size.

    Args:
        rows: (R, C) floats.
        dtype: float32 and float16 give an array.

    >>> small = stored(np.array([[1.0, -0.25, 0.0]], np.float32), "int8")
    >>> small.values.tolist(), np.asarray(small).round(2).tolist()
    ([[127, -32, 0]], [[1.0, -0.25, 0.0]])
    >>> signs = stored(np.array([[0.6, -0.8, 0.0]], np.float32), "binary")
    >>> signs.values.tolist(), [round(value, 3) for value in np.asarray(signs)[0].tolist()]
    ([[160]], [0.714, -0.714, 0.714])
    """
    dtype = ColbertDtype(dtype)
    if not dtype.is_packed:
        return rows.astype(dtype.value, copy=False)
    exact = rows.astype(np.float32, copy=False)
    if dtype is ColbertDtype.INT8:
        return _int8(exact)
    most = (1 << dtype.bits) - 1
    steps = np.abs(exact).max(axis=1, initial=0)[:, None] * np.float32(2 / most)
    codes = np.floor(exact / np.where(steps > np.finfo(np.float32).tiny, steps, 1)) + (most + 1) // 2
    highest = np.where(exact < 0, most // 2, most)  # the smallest of floats have quotients that are no longer below 0
    codes = np.clip(codes, 0, highest).astype(np.uint8)
    levels = codes.astype(np.float32) * 2 - most
    square, along = (np.einsum("rc,rc->r", exact, other) for other in (exact, levels))
    scales = (square / np.where(along > 0, along, 1)).astype(np.float32)
    if dtype is ColbertDtype.BINARY:
        return PackedRows(dtype, np.packbits(codes, axis=1), scales, rows.shape[1])
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return PackedRows(dtype, even[:, ::2] << 4 | even[:, 1::2], scales, rows.shape[1])


def joined_rows(texts: Sequence[NDArray[Any] | PackedRows]) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """The rows of several texts, at least one, one after the other: values, and scales where rows are packed."""
    packed = [rows for rows in texts if isinstance(rows, PackedRows)]
    if not packed:
        return np.concatenate([np.asarray(rows) for rows in texts]), None
    return np.concatenate([rows.values for rows in packed]), np.concatenate([rows.scales for rows in packed])


def projected(rows: NDArray[np.float32], axes: NDArray[np.float32], *, normalize: bool) -> NDArray[np.float32]:
    """Rows (R, C) on axes (C, D): (R, D), at unit length if vectors of the model are.

    Scores come out higher than without the other dimensions, and their order better than without normalizing.
    """
    found = rows @ axes
    if normalize:
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        found /= np.where(lengths > 0, lengths, 1)
    return found


def _int8(rows: NDArray[np.float32]) -> PackedRows:
    largest = np.abs(rows).max(axis=1, initial=0)
    # the smallest floats have no 127th part
    scales = np.where(largest > 127 * np.finfo(np.float32).tiny, largest / np.float32(127), np.float32(1))
    return PackedRows(ColbertDtype.INT8, np.rint(rows / scales[:, None]).astype(np.int8), scales, rows.shape[1])
