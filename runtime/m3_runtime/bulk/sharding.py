"""Rows to shards. Which row is in which shard follows from the input and the shard size alone, so a job can resume."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from m3_runtime.bulk.rows import BadRow, Columns, RawRow, Row
from m3_runtime.bulk.sources import SourceFile


@dataclass(frozen=True)
class Shard:
    """Some neighbouring rows of the input.

    Attributes:
        index: 0 for the first.
        rows: those that can be encoded.
        bad: the others.
        start_bytes: how much of all inputs lies before it.
        end_bytes: how much lies before the next.
    """

    index: int
    rows: tuple[Row, ...]
    bad: tuple[BadRow, ...]
    start_bytes: int
    end_bytes: int

    @property
    def input_bytes(self) -> int:
        """How much of the inputs it takes."""
        return self.end_bytes - self.start_bytes


def read_shards(
    sources: Sequence[SourceFile], columns: Columns, shard_rows: int, done: Container[int] = frozenset()
) -> Iterator[Shard]:
    """Yield the shards that are not done; those that are done are read, but not looked into.

    Args:
        sources: the files, in order.
        columns: what is read of each.
        shard_rows: rows of a shard, good and bad together; the last one may have fewer.
        done: indices of shards to pass over.

    Raises:
        InputError: a file cannot be read, or lacks a column.
    """
    kept: list[RawRow] = []
    count = start_bytes = end_bytes = 0
    for base_bytes, row in _all_rows(sources, columns):
        index, count = count // shard_rows, count + 1
        end_bytes = base_bytes + row.end_bytes
        if index not in done:
            kept.append(row)
        if count % shard_rows == 0:
            if kept:
                yield _shard(index, kept, start_bytes, end_bytes)
            kept, start_bytes = [], end_bytes
    if kept:
        yield _shard(count // shard_rows, kept, start_bytes, end_bytes)


def _all_rows(sources: Sequence[SourceFile], columns: Columns) -> Iterator[tuple[int, RawRow]]:
    base_bytes = 0
    for source in sources:
        for row in source.rows(columns):
            yield base_bytes, row
        base_bytes += source.size_bytes


def _shard(index: int, kept: Sequence[RawRow], start_bytes: int, end_bytes: int) -> Shard:
    parsed = [row.parsed() for row in kept]
    rows = tuple(row for row in parsed if isinstance(row, Row))
    return Shard(index, rows, tuple(row for row in parsed if isinstance(row, BadRow)), start_bytes, end_bytes)
