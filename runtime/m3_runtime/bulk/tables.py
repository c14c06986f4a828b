"""Rows of Parquet files: two columns are read, a few thousand rows at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3_runtime.bulk.arrow import arrow, parquet
from m3_runtime.bulk.rows import BadRow, Columns, Row, checked_row
from m3_runtime.errors import InputError

_BATCH_ROWS = 1024
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _RawCells:
    """A row's cells in two columns; `names` is None where rows are called by their place."""

    path: str
    number: int
    texts: Any
    names: Any
    offset: int
    end_bytes: int

    def parsed(self) -> Row | BadRow:
        """Take the values out of their columns."""
        place = f"{self.path}:{self.number}"
        try:
            text = self.texts[self.offset].as_py()
            name = place if self.names is None else self.names[self.offset].as_py()
        except UnicodeDecodeError as error:  # writers may put any bytes into a string column
            return BadRow(place, f"not UTF-8 text (byte {error.start} of the cell)")
        return BadRow(place, "the text is null") if text is None else checked_row(place, name, text)


def raw_rows(path: str, columns: Columns) -> Iterator[_RawCells]:
    """Yield the rows of a Parquet file, numbered from 1.

    Args:
        path: the file.
        columns: names of the columns; that of the text holds strings, that of the id strings or integers.

    Raises:
        InputError: the file cannot be read as Parquet, or a column is missing or of another type.
        ExtraNotInstalledError: pyarrow is not installed.
    """
    pa, pq = arrow(), parquet()
    try:
        # Without buffering a whole column of a row group is read at once, and a file may be one row group.
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            yield from _rows_of(file, path, columns, _id_column(file.schema_arrow, path, columns))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"cannot read {path!r} as Parquet: {error}") from error


def _rows_of(file: Any, path: str, columns: Columns, id_column: str | None) -> Iterator[_RawCells]:
    size_bytes, rows = Path(path).stat().st_size, file.metadata.num_rows
    wanted = [columns.text] if id_column is None else [columns.text, id_column]
    start = 0
    for batch in file.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(wanted))):
        texts = batch.column(columns.text)
        names = None if id_column is None else batch.column(id_column)
        for offset in range(batch.num_rows):
            number = start + offset + 1
            yield _RawCells(path, number, texts, names, offset, size_bytes * number // rows)
        start += batch.num_rows


def _id_column(schema: Any, path: str, columns: Columns) -> str | None:
    """The name of the id column, or None if there is none and none was asked for."""
    types = arrow().types
    _check_column(schema, path, columns.text, (types.is_string, types.is_large_string), "strings")
    if columns.id is None and columns.id_or_usual not in schema.names:
        return None
    kinds = (types.is_string, types.is_large_string, types.is_integer)
    _check_column(schema, path, columns.id_or_usual, kinds, "strings or integers")
    return columns.id_or_usual


def _check_column(schema: Any, path: str, name: str, kinds: tuple[Any, ...], expected: str) -> None:
    if schema.names.count(name) != 1:
        found = "two columns" if name in schema.names else "no column"
        raise InputError(f"{path!r} has {found} {name!r}; its columns are: {', '.join(schema.names)}")
    kind = schema.field(name).type
    value_kind = kind.value_type if arrow().types.is_dictionary(kind) else kind
    if not any(is_kind(value_kind) for is_kind in kinds):
        raise InputError(f"{path!r}: column {name!r} must hold {expected}, got {kind}")
