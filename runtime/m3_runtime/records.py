"""Frozen dataclasses to JSON values and back, strictly: a missing, unknown or mistyped key is an error.

A field with the metadata `OPTIONAL` came later than the format: files without it are read as ever.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar, get_args, get_origin

from m3_runtime.errors import BundleFormatError

T = TypeVar("T")

OPTIONAL = types.MappingProxyType({"optional": True})
"""Metadata of a field that a file may lack: it takes its default then."""


def to_json(value: Any) -> Any:
    """A record, tuple, mapping, enum or scalar as JSON values."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type[T], data: Any, where: str) -> T:
    """JSON values as a record of type `cls`; `where` names the place in errors.

    Raises:
        BundleFormatError: a key is missing, unknown or of the wrong type.
    """
    if not isinstance(data, dict):
        raise BundleFormatError(f"{where}: expected an object, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    optional = {f.name for f in dataclasses.fields(cls) if f.metadata.get("optional")}  # type: ignore[arg-type]
    missing, unknown = hints.keys() - data.keys() - optional, data.keys() - hints.keys()
    if missing or unknown:
        raise BundleFormatError(f"{where}: missing keys {sorted(missing)}, unknown keys {sorted(unknown)}")
    return cls(**{name: _value(hints[name], item, f"{where}: {name}") for name, item in data.items()})


def _value(hint: Any, data: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is types.UnionType:  # only `X | None` is used
        return None if data is None else _value(args[0], data, where)
    if origin is tuple:
        return tuple(_value(args[0], item, f"{where}[{i}]") for i, item in enumerate(_expect(list, data, where)))
    if origin is Mapping:
        return {key: _value(args[1], item, f"{where}.{key}") for key, item in _expect(dict, data, where).items()}
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type[Any], hint), data, where)
    try:
        if issubclass(hint, StrEnum):
            return hint(data)
        if hint is float and isinstance(data, int) and not isinstance(data, bool):
            return float(data)
    except OverflowError as error:
        raise BundleFormatError(f"{where}: expected a number of at most {sys.float_info.max}") from error
    except ValueError as error:
        raise BundleFormatError(f"{where}: expected one of {[e.value for e in hint]}, got {data!r}") from error
    return _expect(hint, data, where)


def _expect(kind: type[T], data: Any, where: str) -> T:
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise BundleFormatError(f"{where}: expected {kind.__name__}, got {data!r}")
    return data
