"""What a bulk job makes of what: the values that decide its output. Two runs of one job write the same shards."""

from dataclasses import dataclass, fields
from enum import StrEnum

from m3_runtime.bulk.rows import Columns
from m3_runtime.bulk.sources import SourceFile
from m3_runtime.bundle.manifest import Head

FORMAT = 1
"""Of the output folder; a release that writes something else counts up."""


class DenseDtype(StrEnum):
    """How dense vectors are written."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class ColbertDtype(StrEnum):
    """How ColBERT rows are written; int8 comes with a scale for each row."""

    FLOAT16 = "float16"
    INT8 = "int8"


class OnLong(StrEnum):
    """What becomes of a text of more than `max_length` tokens."""

    TRUNCATE = "truncate"
    REJECT = "reject"


@dataclass(frozen=True)
class VectorSettings:
    """What is made of a text.

    Attributes:
        heads: at least one.
        max_length: tokens per text, both special tokens included.
        on_long: what becomes of longer texts.
        dense_dtype: of dense vectors.
        colbert_dtype: of ColBERT rows.
        colbert_pool: so many ColBERT rows become one, on average; 1 keeps all.
    """

    heads: tuple[Head, ...]
    max_length: int
    on_long: OnLong = OnLong.TRUNCATE
    dense_dtype: DenseDtype = DenseDtype.FLOAT32
    colbert_dtype: ColbertDtype = ColbertDtype.FLOAT16
    colbert_pool: int = 1


@dataclass(frozen=True)
class Job:
    """A job, as the first line of its journal keeps it.

    Attributes:
        space_id: of the bundle.
        variant: that encodes.
        vectors: what is made of a text.
        shard_rows: rows of the input in a shard, bad ones included.
        columns: what is read.
        sources: the files, in order.
        format: of the output folder.
    """

    space_id: str
    variant: str
    vectors: VectorSettings
    shard_rows: int
    columns: Columns
    sources: tuple[SourceFile, ...]
    format: int = FORMAT


def difference(begun: Job, asked: Job) -> str | None:
    """The first thing in which two jobs differ, in words; None if they are the same.

    Args:
        begun: what a folder was begun with.
        asked: what is asked for now.
    """
    if begun.vectors != asked.vectors:
        return _first(begun.vectors, asked.vectors)
    if begun.columns != asked.columns:
        return _first(begun.columns, asked.columns, " column")
    if [one.path for one in begun.sources] == [one.path for one in asked.sources]:
        changed = [new.path for old, new in zip(begun.sources, asked.sources, strict=True) if old != new]
        if changed:
            return f"{changed[0]!r} has changed since"
    return _first(begun, asked)


def _first(begun: object, asked: object, suffix: str = "") -> str | None:
    for field in fields(begun):  # type: ignore[arg-type]
        old, new = getattr(begun, field.name), getattr(asked, field.name)
        if old != new:
            return f"{field.name.replace('_', ' ')}{suffix}: begun with {_shown(old)}, now {_shown(new)}"
    return None


def _shown(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    names = [item.path if isinstance(item, SourceFile) else str(item) for item in value]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
