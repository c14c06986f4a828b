"""Parquet: one column of texts and one of ids, or fields of struct columns by their path. Needs pyarrow."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from m3_runtime.errors import FileFormatError, InputError
from m3_runtime.extras import import_extra
from m3_runtime.io.formats import STDIN, packing_of
from m3_runtime.io.opened import FileState, check_unchanged
from m3_runtime.io.rows import Columns, RawRow

_BUFFER_BYTES = 1 << 20
_BATCH_ROWS = 1024
_TEXT_TYPES = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")


def table_rows(path: str, columns: Columns) -> Iterator[RawRow]:
    """Yield the rows of a Parquet file.

    Raises:
        InputError: it cannot be read, or a column is missing, is there twice, or holds what is no text or id.
        ExtraNotInstalledError: pyarrow is not installed.
    """
    pa, pq = import_extra("pyarrow", "bulk"), import_extra("pyarrow.parquet", "bulk")
    if path == STDIN:
        raise InputError("Parquet cannot be read from standard input, as its end is read first; write it to a file")
    if packing := packing_of(path):
        raise InputError(f"{path!r} is Parquet, which cannot be read through {packing}; unpack it first")
    try:
        before = FileState.of(path)
        # Without buffering a whole column of a row group is read at once, and a file may be one row group.
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            id_column = _id_column(file.schema_arrow, path, columns)
            size_bytes, rows, number = Path(path).stat().st_size, file.metadata.num_rows, 0
            wanted = dict.fromkeys([columns.text] if id_column is None else [columns.text, id_column])
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(wanted)):
                texts = _cells(batch, columns.text)
                names = None if id_column is None else _cells(batch, id_column)
                for offset in range(batch.num_rows):
                    number += 1
                    cells = partial(_id_and_text, texts, names, offset)
                    yield RawRow(path, number, size_bytes * number // rows, cells)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read {path!r} as Parquet: {error}") from error
    check_unchanged(path, before)


def _id_and_text(texts: Any, names: Any, offset: int, unnamed: str) -> tuple[object, object]:
    """A row's cells in two columns of a batch; `names` is None where there is no id column."""
    try:
        text = texts[offset].as_py()
        if text is None:
            raise InputError("the text is null")
        return unnamed if names is None else names[offset].as_py(), text
    except UnicodeDecodeError as error:  # writers may put any bytes into a string column
        raise InputError(f"not UTF-8 text (byte {error.start} of the cell)") from error


def _id_column(schema: Any, path: str, columns: Columns) -> str | None:
    """The name of the id column; None if there is none and none was asked for."""
    kind = _type(schema, path, columns.text)
    if not _is_text(kind):
        raise InputError(f"{path!r}: column {columns.text!r} must hold strings, got {kind}{_remedy(kind)}")
    if columns.id is None and columns.id_or_usual not in schema.names:
        return None
    kind = _type(schema, path, columns.id_or_usual)
    types = import_extra("pyarrow.types", "bulk")
    is_uuid = str(kind) in ("extension<arrow.uuid>", "uuid")
    if not (_is_text(kind) or types.is_integer(_values_of(kind)) or is_uuid):
        raise InputError(
            f"{path!r}: column {columns.id_or_usual!r} must hold strings or integers, got {kind}{_remedy(kind)}"
        )
    return columns.id_or_usual


def _type(schema: Any, path: str, name: str) -> Any:
    """The type of a column, or of a field by its path."""
    if schema.names.count(name) == 1:
        return schema.field(name).type
    types = import_extra("pyarrow.types", "bulk")
    top, *rest = name.split(".")
    if schema.names.count(name) > 1 or schema.names.count(top) != 1:
        found = "two columns" if name in schema.names else "no column"
        message = f"{path!r} has {found} {name!r}; its columns are: {', '.join(schema.names)}. Rename one"
        raise FileFormatError(message, text="COLUMN", id="COLUMN")
    kind = schema.field(top).type
    for part in rest:
        if types.is_struct(kind) and kind.get_field_index(part) >= 0:
            kind = kind.field(part).type
            continue
        raise InputError(f"{path!r} has no column {name!r}: {top!r} is {kind}{_remedy(kind)}")
    return kind


def _cells(batch: Any, name: str) -> Any:
    """A column of a batch, or a field of its structs; a field of a struct that is null is null."""
    if name in batch.schema.names:
        return batch.column(name)
    top, *rest = name.split(".")
    return import_extra("pyarrow.compute", "bulk").struct_field(batch.column(top), rest)


def _values_of(kind: Any) -> Any:
    return kind.value_type if import_extra("pyarrow.types", "bulk").is_dictionary(kind) else kind


def _is_text(kind: Any) -> bool:
    return str(_values_of(kind)) in _TEXT_TYPES


def _remedy(kind: Any) -> str:
    types = import_extra("pyarrow.types", "bulk")
    if types.is_nested(kind) and not types.is_struct(kind):
        return "; a row is one text: write a row for each element (explode, unnest)"
    if types.is_struct(kind):
        names = ", ".join(kind.field(i).name for i in range(kind.num_fields))
        return f"; name a field of it by its path, COLUMN.FIELD: {names}"
    if types.is_floating(kind):
        return "; pandas turns integers into floats where there are nulls: write them as integers or strings"
    return ""
