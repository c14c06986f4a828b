"""A shard's rows to a Parquet file, step by step, so that memory follows the step and not the shard."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3_runtime.bulk.arrow import parquet
from m3_runtime.bulk.disk import open_whole, writing
from m3_runtime.bulk.job import ColbertDtype, Job, OnLong, VectorSettings
from m3_runtime.bulk.rows import BadRow, Row
from m3_runtime.bulk.schema import COMPRESSION, shard_schema, step_table
from m3_runtime.bulk.sharding import Shard
from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.batching import DEFAULT_TOKEN_BUDGET
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import DEFAULT_BATCH_SIZE
from m3_runtime.encoder import M3Encoder

# A step is long enough that texts of one length meet in it. Its results are held at once, and a token of ColBERT is
# 4 KB in BGE-M3: a character is a token at most, or nearly.
_STEP_TEXTS, _STEP_CHARS = 4096, 4_000_000
_COLBERT_STEP_TEXTS, _COLBERT_STEP_CHARS = 512, 150_000


@dataclass(frozen=True)
class Limits:
    """How much runs together: most texts, and most tokens."""

    batch_size: int = DEFAULT_BATCH_SIZE
    token_budget: int = DEFAULT_TOKEN_BUDGET


@dataclass(frozen=True)
class StepDone:
    """Some rows of a shard are in its file; they, and bad rows beside them, took so much of the inputs."""

    rows: int
    tokens: int
    input_bytes: int


@dataclass(frozen=True)
class ShardDraft:
    """A shard, flushed to disk under a name that is not its own yet.

    Attributes:
        index: which shard.
        path: its file; None if no row of it could be encoded.
        rows: in the file.
        bad: that are not.
        tokens: that were encoded, both special tokens of each text included.
        truncated: how many texts were cut.
        input_bytes: of the inputs, that it took.
    """

    index: int
    path: Path | None
    rows: int
    bad: tuple[BadRow, ...]
    tokens: int
    truncated: int
    input_bytes: int


def encode_shard(
    encoder: M3Encoder, job: Job, limits: Limits, shard: Shard, partial: Path
) -> Iterator[StepDone | ShardDraft]:
    """Encode a shard into a file, and yield how it goes; the draft comes last.

    Args:
        encoder: of the job's bundle and variant.
        job: what is made of a text.
        limits: how much runs together.
        shard: its rows.
        partial: the folder to write into, under a name that no other attempt has.

    Raises:
        BulkError: the file cannot be written.
        EngineError: the engine failed.
    """
    rows, long = _without_long(encoder, job.vectors, shard.rows)
    bad = (*shard.bad, *long)
    if not rows:
        yield ShardDraft(shard.index, None, 0, bad, 0, 0, shard.input_bytes)
        return
    path = partial / f"shard-{shard.index}.{secrets.token_hex(8)}"
    tokens = truncated = 0
    with writing(path), open_whole(path) as file, _writer(file, job, encoder) as writer:
        for step in _steps(rows, job.vectors.heads):
            encoding = _encoded(encoder, job.vectors, limits, step)
            writer.write_table(step_table([row.id for row in step], encoding, job.vectors, writer.schema))
            step_tokens = int(encoding.token_counts.sum())
            tokens, truncated = tokens + step_tokens, truncated + encoding.truncated
            yield StepDone(len(step), step_tokens, shard.input_bytes * len(step) // len(rows))
    yield ShardDraft(shard.index, path, len(rows), bad, tokens, truncated, shard.input_bytes)


def _writer(file: Any, job: Job, encoder: M3Encoder) -> Any:
    schema = shard_schema(job, encoder.bundle.manifest.geometry)
    return parquet().ParquetWriter(
        file, schema, compression=COMPRESSION, use_dictionary=False, write_statistics=["id", "tokens"]
    )


def _encoded(encoder: M3Encoder, settings: VectorSettings, limits: Limits, step: Sequence[Row]) -> Encoding:
    as_written = settings.colbert_dtype is ColbertDtype.FLOAT16 and settings.colbert_pool == 1
    return encoder.encode(
        [row.text for row in step],
        limits.batch_size,
        settings.max_length,
        *(head in settings.heads for head in Head),
        token_budget=limits.token_budget,
        colbert_dtype="float16" if as_written else "float32",
    )


def _without_long(
    encoder: M3Encoder, settings: VectorSettings, rows: Sequence[Row]
) -> tuple[list[Row], tuple[BadRow, ...]]:
    """The rows that are encoded, and those that are refused because they are too long."""
    if settings.on_long is OnLong.TRUNCATE or not rows:
        return list(rows), ()
    is_cut = encoder.tokenizer.encode_batch([row.text for row in rows], settings.max_length).is_cut
    reason = f"the text has more than {settings.max_length} tokens"
    long = tuple(BadRow(row.place, reason) for row, cut in zip(rows, is_cut, strict=True) if cut)
    return [row for row, cut in zip(rows, is_cut, strict=True) if not cut], long


def _steps(rows: Sequence[Row], heads: Sequence[Head]) -> Iterator[Sequence[Row]]:
    """Runs of rows, each within the bounds on texts and characters, or one row."""
    most_texts, most_chars = (
        (_COLBERT_STEP_TEXTS, _COLBERT_STEP_CHARS) if Head.COLBERT in heads else (_STEP_TEXTS, _STEP_CHARS)
    )
    start = chars = 0
    for i, row in enumerate(rows):
        if i > start and (i - start >= most_texts or chars + len(row.text) > most_chars):
            yield rows[start:i]
            start, chars = i, 0
        chars += len(row.text)
    yield rows[start:]
