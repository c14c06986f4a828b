"""A bulk job: its inputs and settings, which alone decide its output. Two runs of one job write the same shards."""

from dataclasses import dataclass, field, fields
from enum import StrEnum

from m3_runtime.bulk.sources import SourceFile
from m3_runtime.bundle.manifest import Head
from m3_runtime.bundle.space import space_on_axes
from m3_runtime.encode.colbert import ColbertDtype
from m3_runtime.io.rows import Columns
from m3_runtime.records import OPTIONAL

FORMAT = 1
"""Version of the output folder; a release that writes something else counts up."""


class ShardDenseDtype(StrEnum):
    """How dense vectors are written."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class OnLong(StrEnum):
    """What to do with a text of more than `max_length` tokens."""

    TRUNCATE = "truncate"
    REJECT = "reject"


@dataclass(frozen=True)
class VectorSettings:
    """Which vectors are made of a text, and how they are written.

    Attributes:
        heads: at least one.
        max_length: tokens per text, both special tokens included.
        on_long: what to do with longer texts.
        dense_dtype: of dense vectors.
        colbert_dtype: of ColBERT rows.
        colbert_pool: how many ColBERT rows become one, on average; 1 keeps all.
        colbert_dim: principal axes that ColBERT rows are projected on; None keeps all dimensions.
        colbert_pca: SHA-256 of the bundle's principal axes; "" where they are not used.
    """

    heads: tuple[Head, ...]
    max_length: int
    on_long: OnLong = OnLong.TRUNCATE
    dense_dtype: ShardDenseDtype = ShardDenseDtype.FLOAT32
    colbert_dtype: ColbertDtype = ColbertDtype.FLOAT16
    colbert_pool: int = 1
    colbert_dim: int | None = field(default=None, metadata=OPTIONAL)
    colbert_pca: str = field(default="", metadata=OPTIONAL)


@dataclass(frozen=True)
class BulkJob:
    """A job, as the first line of its journal keeps it.

    Attributes:
        space_id: of the bundle.
        variant: that encodes.
        vectors: which vectors to make.
        shard_rows: rows of the input in a shard, bad ones included.
        columns: which columns to read.
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

    @property
    def colbert_space_id(self) -> str:
        """Name of the space of the ColBERT rows."""
        dim = self.vectors.colbert_dim
        return self.space_id if dim is None else space_on_axes(self.space_id, dim, self.vectors.colbert_pca)


def difference(begun: BulkJob, asked: BulkJob) -> str | None:
    """The first difference between the job of an existing folder and the one to run now, in words; None for none."""
    if begun.vectors != asked.vectors:
        return _first_difference(begun.vectors, asked.vectors)
    if begun.columns != asked.columns:
        return _first_difference(begun.columns, asked.columns, " column")
    if [one.path for one in begun.sources] == [one.path for one in asked.sources]:
        changed = [new.path for old, new in zip(begun.sources, asked.sources, strict=True) if old != new]
        if changed:
            return f"{changed[0]!r} has changed since"
    return _first_difference(begun, asked)


def _first_difference(begun: object, asked: object, suffix: str = "") -> str | None:
    for one in fields(begun):  # type: ignore[arg-type]
        old, new = getattr(begun, one.name), getattr(asked, one.name)
        if old != new:
            return f"{one.name.replace('_', ' ')}{suffix}: begun with {_shown(old)}, now {_shown(new)}"
    return None


def _shown(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    names = [item.path if isinstance(item, SourceFile) else str(item) for item in value]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
