"""Rows to shards, and a shard's rows to a Parquet file.

Which row is in which shard follows from the input and the shard size alone, so a job can resume. A shard is encoded in
steps, so that memory follows the step and not the shard.
"""

import secrets
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bulk.job import BulkJob, OnLong, ShardDenseDtype, VectorSettings
from m3_runtime.bulk.journal import ShardCounts, writing
from m3_runtime.bulk.sources import SourceFile, SourceWatch
from m3_runtime.bundle.manifest import Geometry, Head
from m3_runtime.encode.batching import DEFAULT_TOKEN_BUDGET
from m3_runtime.encode.colbert import PackedRows, joined_rows
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import DEFAULT_BATCH_SIZE
from m3_runtime.encoder import M3Encoder
from m3_runtime.extras import import_extra
from m3_runtime.io.atomic import new_file
from m3_runtime.io.rows import BadRow, Columns, RawRow, Row
from m3_runtime.splitting import RunLimit, greedy_runs
from m3_runtime.tokenizer import M3Tokenizer, TokenizedTexts
from m3_runtime.version import __version__

# A step is long enough that texts of one length meet in it. Its results are held at once, and a token of ColBERT is
# 4 KB in BGE-M3: a character is a token at most, or nearly. Items are texts, sizes characters.
_STEP = RunLimit(4096, 4_000_000)
_COLBERT_STEP = RunLimit(512, 150_000)

_COMPRESSION = {"id": "zstd", "tokens": "zstd", "lexical_weights.list.element.id": "zstd"}
"""By column; float vectors are noise to a compressor."""

_PACKED = "colbert_vecs.list.element.list.element"
"""Parquet has no 8-bit type: values of 8 bits would take 32 each. A dictionary of them takes 8, and zstd the rest."""


@dataclass(frozen=True)
class BulkLimits:
    """How much runs together: most texts, and most tokens."""

    batch_size: int = DEFAULT_BATCH_SIZE
    token_budget: int = DEFAULT_TOKEN_BUDGET


@dataclass(frozen=True)
class Shard:
    """Neighbouring rows of the input, `input_bytes` of all files: those that can be encoded, and the bad ones."""

    index: int
    rows: tuple[Row, ...]
    bad: tuple[BadRow, ...]
    input_bytes: int


@dataclass(frozen=True)
class StepDone:
    """Some rows of a shard are in its file; they, and bad rows beside them, are this much of the inputs."""

    rows: int
    tokens: int
    input_bytes: int


@dataclass(frozen=True)
class ShardDraft:
    """A shard on disk, still under a temporary name, and its bad rows; no file where it has no others."""

    counts: ShardCounts
    path: Path | None
    bad: tuple[BadRow, ...]


def read_shards(
    sources: Sequence[SourceFile],
    columns: Columns,
    shard_rows: int,
    done: Container[int] = frozenset(),
    watch: SourceWatch | None = None,
) -> Iterator[Shard]:
    """Yield the shards that are not done; those that are done are read, but not looked into.

    `shard_rows` counts good and bad rows together; the last shard may have fewer. `watch` learns which file is read.

    Raises:
        InputError: a file cannot be read, lacks a column, or is not what it was.
    """
    watch = watch or SourceWatch()
    kept: list[RawRow] = []
    count = start_bytes = end_bytes = base_bytes = 0
    for source in sources:
        watch.begin(source)
        for row in source.rows(columns):
            index, count = count // shard_rows, count + 1
            end_bytes = base_bytes + row.end_bytes
            if index not in done:
                kept.append(row)
            if count % shard_rows == 0:
                if kept:
                    yield _shard(index, kept, end_bytes - start_bytes)
                kept, start_bytes = [], end_bytes
        base_bytes += source.size_bytes
    if kept:
        yield _shard(count // shard_rows, kept, end_bytes - start_bytes)


def _shard(index: int, kept: Sequence[RawRow], input_bytes: int) -> Shard:
    parsed = [row.parsed() for row in kept]
    rows = tuple(row for row in parsed if isinstance(row, Row))
    return Shard(index, rows, tuple(row for row in parsed if isinstance(row, BadRow)), input_bytes)


def encode_shard(
    encoder: M3Encoder, job: BulkJob, limits: BulkLimits, shard: Shard, partial: Path
) -> Iterator[StepDone | ShardDraft]:
    """Encode a shard into a file of the folder `partial`, and yield how it goes; the draft comes last.

    Raises:
        BulkError: the file cannot be written.
        EngineError: the engine failed.
    """
    settings, path = job.vectors, None
    rows: Sequence[Row] = shard.rows
    ids: Sequence[NDArray[np.int32]] | None = None
    bad, tokens, truncated, respelled = shard.bad, 0, 0, 0
    if settings.on_long is OnLong.REJECT:
        rows, tokenized, long = without_long(encoder.tokenizer, settings, rows)
        ids, bad, respelled = tokenized.ids, (*bad, *long), tokenized.out_of_vocabulary
    if rows:
        path = partial / f"shard-{shard.index}.{secrets.token_hex(8)}"
        limit = _COLBERT_STEP if Head.COLBERT in settings.heads else _STEP
        with writing(path), new_file(path) as file, _writer(file, job, encoder) as writer:
            for run in greedy_runs((len(row.text) for row in rows), limit):
                step = rows[run.start : run.stop]
                encoding = _encoded(encoder, settings, limits, step, ids[run.start : run.stop] if ids else None)
                writer.write_table(_table([row.id for row in step], encoding, settings, writer.schema))
                step_tokens = int(encoding.token_counts.sum())
                tokens, truncated = tokens + step_tokens, truncated + encoding.truncated
                respelled += encoding.out_of_vocabulary  # 0 for ids, whose texts were counted above
                yield StepDone(len(step), step_tokens, shard.input_bytes * len(step) // len(rows))
    counts = ShardCounts(
        index=shard.index,
        rows=len(rows),
        rejected=len(bad),
        tokens=tokens,
        truncated=truncated,
        input_bytes=shard.input_bytes,
        out_of_vocabulary=respelled,
    )
    yield ShardDraft(counts, path, bad)


def without_long(
    tokenizer: M3Tokenizer, settings: VectorSettings, rows: Sequence[Row]
) -> tuple[list[Row], TokenizedTexts, list[BadRow]]:
    """The rows to encode, as texts and as ids, and those to reject because they are too long."""
    tokenized = tokenizer.encode_batch([row.text for row in rows], settings.max_length)
    is_bad = tokenized.is_cut & (settings.on_long is OnLong.REJECT)
    reason = f"the text has more than {settings.max_length} tokens"
    bad = [BadRow(rows[i].place, reason) for i in np.flatnonzero(is_bad).tolist()]
    kept = np.flatnonzero(~is_bad).tolist()
    ids = tuple(tokenized.ids[i] for i in kept)
    respelled = None if tokenized.is_respelled is None else tokenized.is_respelled[kept]
    return [rows[i] for i in kept], TokenizedTexts(ids, tokenized.is_cut[kept], respelled), bad


def _encoded(
    encoder: M3Encoder,
    settings: VectorSettings,
    limits: BulkLimits,
    step: Sequence[Row],
    ids: Sequence[NDArray[np.int32]] | None,
) -> Encoding:
    how: dict[str, Any] = {"batch_size": limits.batch_size, "token_budget": limits.token_budget}
    if Head.COLBERT in settings.heads:
        names = ("colbert_dtype", "colbert_dim", "colbert_pool")
        how |= {name: getattr(settings, name) for name in names}
    if ids is not None:
        return encoder.encode_ids(ids, settings.heads, **how)
    return encoder.encode_heads([row.text for row in step], settings.heads, max_length=settings.max_length, **how)


def _writer(file: Any, job: BulkJob, encoder: M3Encoder) -> Any:
    schema = shard_schema(job, encoder.bundle.manifest.geometry)
    is_packed = Head.COLBERT in job.vectors.heads and job.vectors.colbert_dtype.is_packed
    return import_extra("pyarrow.parquet", "bulk").ParquetWriter(
        file,
        schema,
        compression=_COMPRESSION | ({_PACKED: "zstd"} if is_packed else {}),
        use_dictionary=[_PACKED] if is_packed else False,
        write_statistics=["id", "tokens"],
        write_page_checksum=True,
    )


def shard_schema(job: BulkJob, geometry: Geometry) -> Any:
    """The columns of a job's shards in the order of `Head`, and in the metadata what vectors may be compared by."""
    pa, settings = import_extra("pyarrow", "bulk"), job.vectors
    columns = [("id", pa.string()), ("tokens", pa.int32())]
    metadata = {
        "m3.space_id": job.space_id,
        "m3.variant": job.variant,
        "m3.max_length": str(settings.max_length),
        "m3.vocab_size": str(geometry.vocab_size),
        "m3.runtime_version": __version__,
    }
    if Head.DENSE in settings.heads:
        kind = pa.float16() if settings.dense_dtype is ShardDenseDtype.FLOAT16 else pa.float32()
        columns.append(("dense_vecs", pa.list_(kind, geometry.hidden_size)))
    if Head.SPARSE in settings.heads:
        columns.append(("lexical_weights", pa.list_(_lexical_struct(pa))))
    if Head.COLBERT in settings.heads:
        dtype, dim = settings.colbert_dtype, settings.colbert_dim or geometry.colbert_dim or 0
        rows = pa.list_(pa.from_numpy_dtype(dtype.item), dtype.width(dim))
        columns.append(("colbert_vecs", pa.list_(rows)))
        if dtype.is_packed:
            columns.append(("colbert_scales", pa.list_(pa.float32())))
        metadata |= {"m3.colbert_dtype": dtype.value, "m3.colbert_pool": str(settings.colbert_pool)}
        metadata |= {"m3.colbert_dim": str(dim), "m3.colbert_pca": settings.colbert_pca}
        metadata["m3.colbert_space_id"] = job.colbert_space_id
    return pa.schema([pa.field(*column, nullable=False) for column in columns], metadata)


def _table(ids: Sequence[str], encoding: Encoding, settings: VectorSettings, schema: Any) -> Any:
    """A table of the S texts of an encoding."""
    pa = import_extra("pyarrow", "bulk")
    columns = [pa.array(ids, pa.string()), pa.array(encoding.token_counts, pa.int32())]
    if encoding.dense_vecs is not None:
        columns.append(_fixed_rows(pa, encoding.dense_vecs.astype(settings.dense_dtype.value, copy=False)))
    if (sparse := encoding.sparse) is not None:
        pairs = [pa.array(sparse.ids, pa.int32()), pa.array(sparse.weights)]
        entries = pa.StructArray.from_arrays(pairs, fields=list(_lexical_struct(pa)))
        columns.append(pa.ListArray.from_arrays(sparse.indptr.astype(np.int32), entries))
    if encoding.colbert_vecs is not None:
        columns += _colbert_columns(pa, list(encoding.colbert_vecs))
    return pa.table(columns, schema=schema)


def _colbert_columns(pa: Any, texts: Sequence[NDArray[Any] | PackedRows]) -> list[Any]:
    starts = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    values, scales = joined_rows(texts)
    columns = [_fixed_rows(pa, values), *([] if scales is None else [pa.array(scales)])]
    return [pa.ListArray.from_arrays(starts, column) for column in columns]


def _fixed_rows(pa: Any, rows: NDArray[Any]) -> Any:
    """(S, H) values as S lists of H."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def _lexical_struct(pa: Any) -> Any:
    return pa.struct([pa.field("id", pa.int32()), pa.field("weight", pa.float32())])
