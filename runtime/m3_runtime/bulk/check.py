"""A dry run of a job: everything is read and tokenized, a few texts are encoded to see how fast that is."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bulk.job import BulkJob, ShardDenseDtype
from m3_runtime.bulk.run import repeated_hashes
from m3_runtime.bulk.shards import BulkLimits, read_shards, without_long
from m3_runtime.bulk.sources import SourceWatch, check_beginnings
from m3_runtime.bundle.manifest import Geometry, Head
from m3_runtime.encoder import M3Encoder
from m3_runtime.io.progress import Progress
from m3_runtime.io.rows import Row

_SAMPLE_TEXTS = 32
_MOST_REASONS = 1000


@dataclass(frozen=True)
class JobCheck:
    """What a job would do.

    Attributes:
        shards: to write.
        lengths: (R,) int64, tokens of each row to encode, both special tokens included.
        rejected: rows that would not be encoded.
        reasons: why, with how many rows and the place of the first; of very many reasons the first thousand.
        truncated: texts that would be cut.
        out_of_vocabulary: texts with a piece that the bundle dropped.
        repeated_ids: rows with an id that a row before them has.
        tokens_per_s: of the sample, in this process; 0 where there is nothing to encode.
        size_bytes: of the vectors, about: they hardly compress.
    """

    shards: int
    lengths: NDArray[np.int64]
    rejected: int
    reasons: dict[str, tuple[int, str]]
    truncated: int
    out_of_vocabulary: int
    repeated_ids: int
    tokens_per_s: float
    size_bytes: int


def check_job(job: BulkJob, limits: BulkLimits, encoder: M3Encoder, progress: Progress) -> JobCheck:
    """Read all inputs of a job, and say what it would do. Nothing is written; arguments are those of `run_job`.

    Raises:
        InputError: an input cannot be read, lacks a column, or changes meanwhile.
    """
    check_beginnings(job.sources, job.columns)
    watch, sample, reasons = SourceWatch(), list[Row](), dict[str, tuple[int, str]]()
    lengths, hashes = [np.zeros(0, np.int64)], list[NDArray[np.int64]]()
    shards = rows = rejected = truncated = respelled = distinct = 0
    with progress.meter(sum(one.size_bytes for one in job.sources)) as meter:
        for shard in read_shards(job.sources, job.columns, job.shard_rows, watch=watch):
            good, tokenized, long = without_long(encoder.tokenizer, job.vectors, shard.rows)
            shards, rows, rejected = shards + 1, rows + len(good), rejected + len(shard.bad) + len(long)
            truncated, respelled = truncated + tokenized.truncated, respelled + tokenized.out_of_vocabulary
            distinct += sum(np.unique(ids).size for ids in tokenized.ids)
            lengths.append(tokenized.lengths)
            hashes.append(np.fromiter((hash(row.id) for row in good), np.int64))
            for row in (*shard.bad, *long):
                if row.reason in reasons or len(reasons) < _MOST_REASONS:
                    count, place = reasons.get(row.reason, (0, row.place))
                    reasons[row.reason] = count + 1, place
            if not sample:
                sample = list(shard.rows[:: max(1, len(shard.rows) // _SAMPLE_TEXTS)][:_SAMPLE_TEXTS])
            meter.advance(shard.input_bytes, f"{rows} rows")
    watch.check()
    found = np.concatenate(lengths)
    size_bytes = _size_bytes(job, encoder.bundle.manifest.geometry, rows, int(found.sum()), distinct)
    repeated, speed = len(repeated_hashes(hashes)), _tokens_per_s(encoder, job, limits, sample)
    return JobCheck(shards, found, rejected, reasons, truncated, respelled, repeated, speed, size_bytes)


def _tokens_per_s(encoder: M3Encoder, job: BulkJob, limits: BulkLimits, sample: Sequence[Row]) -> float:
    """Tokens that are encoded a second; the first run, which compiles, is not counted."""
    if not sample:
        return 0.0
    seconds = tokens = 0.0
    for _ in range(2):
        started_s = time.monotonic()
        encoding = encoder.encode_heads(
            [row.text for row in sample],
            job.vectors.heads,
            max_length=job.vectors.max_length,
            batch_size=limits.batch_size,
            token_budget=limits.token_budget,
        )
        seconds, tokens = time.monotonic() - started_s, float(encoding.token_counts.sum())
    return tokens / max(seconds, 1e-9)


def _size_bytes(job: BulkJob, geometry: Geometry, rows: int, tokens: int, distinct: int) -> int:
    """Bytes of the columns; a lexical weight is an id and a weight, a packed ColBERT row has a scale too."""
    settings, size = job.vectors, 0
    if Head.DENSE in settings.heads:
        size += rows * geometry.hidden_size * (2 if settings.dense_dtype is ShardDenseDtype.FLOAT16 else 4)
    if Head.SPARSE in settings.heads:
        size += max(0, distinct - 2 * rows) * 8
    if Head.COLBERT in settings.heads and geometry.colbert_dim is not None:
        row_bytes = settings.colbert_dtype.row_bytes(settings.colbert_dim or geometry.colbert_dim)
        size += max(0, tokens - rows) // settings.colbert_pool * row_bytes
    return size
