"""What callers hand over: a list is taken where it has an order and one meaning, and refused otherwise.

Columns of pandas, polars, pyarrow and `datasets` are known by their shape; none of these packages is imported.
"""

import io
from collections.abc import Iterator, Mapping, MappingView, Set
from enum import StrEnum
from typing import Any, TypeVar

from m3_runtime.errors import InputError

_E = TypeVar("_E", bound=StrEnum)
_REMEDIES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (str, "put it into a list"),
    ((bytes, bytearray, memoryview), "decode them: data.decode('utf-8')"),
    (Mapping, "pass its values, in a list"),
    (Set, "it has no order by which results could be matched to texts; pass sorted(…)"),
    (io.IOBase, "read it first: file.read().splitlines()"),
)


def listed(given: object, expected: str) -> list[Any]:
    """The items in their order; arguments and errors are those of `in_order`."""
    return list(in_order(given, expected))


def in_order(given: object, expected: str) -> Iterator[Any]:
    """Go through the items of a list, tuple, iterator, 1-D array, or column of a table.

    An error of an iterator is raised as it is, with a note of how many items came before it. Ours begins as `expected`.

    >>> list(in_order(("a", "b"), "expected a list of texts"))
    ['a', 'b']

    Raises:
        InputError: a single text, bytes, a mapping, a set, a table, a file, a 0-d array, or nothing to go through.
    """
    if remedy := _remedy(given):
        shape = getattr(given, "shape", None)
        kind = type(given).__name__ + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) else "")
        raise InputError(f"{expected}, got {kind}; {remedy}")
    return _noting(given.to_pylist() if hasattr(given, "to_pylist") else given)  # Arrow's items are not Python's


def member(kind: type[_E], value: str, name: str) -> _E:
    """The member of an enumeration that has this value.

    Raises:
        InputError: there is none; the error calls the value `name`.
    """
    try:
        return kind(value)
    except ValueError as error:
        raise InputError(f"{name} must be one of {', '.join(kind)}, got {value!r}") from error


def _remedy(given: object) -> str | None:
    """What to do instead; None if it can be gone through, and in one order only."""
    if isinstance(given, Set) and isinstance(given, MappingView):  # the keys of a dict have an order
        return None
    if known := next((remedy for kinds, remedy in _REMEDIES if isinstance(given, kinds)), None):
        return known
    if hasattr(type(given), "column_names") or hasattr(type(given), "columns"):
        return 'pass one column of the table, table["text"]'
    if not hasattr(given, "__iter__") or isinstance(given, type):
        return "put what is single into a list"
    return "put its item into a list: [array.item()]" if getattr(given, "ndim", 1) == 0 else None


def _noting(items: Any) -> Iterator[Any]:
    done = 0
    try:
        for item in items:
            yield item
            done += 1
    except Exception as error:
        error.add_note(f"raised by what was handed over, after {done} items")
        raise
