"""A dry run of a job: everything is read and tokenized, a few texts are encoded to see how fast that is."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bulk.job import BulkJob, ShardDenseDtype
from m3_runtime.bulk.repeated import came_again
from m3_runtime.bulk.shards import BulkLimits, Shard, read_shards, without_long
from m3_runtime.bulk.sources import SourceWatch, check_beginnings
from m3_runtime.bundle.manifest import Geometry, Head
from m3_runtime.encoder import M3Encoder
from m3_runtime.io.progress import Progress
from m3_runtime.io.rows import BadRow, Row
from m3_runtime.tokenizer import TokenizedTexts

_SAMPLE_TEXTS = 32
_MOST_REASONS = 1000


@dataclass(frozen=True)
class Rejection:
    """Why rows would be rejected: how many for this reason, and the place of the first."""

    rows: int
    reason: str
    place: str


@dataclass(frozen=True)
class JobCheck:
    """What a job would do.

    Attributes:
        files: that were read.
        shards: to write.
        rows: to encode.
        rejected: rows that would not be encoded.
        rejections: their reasons, the most frequent first.
        tokens: to encode, both special tokens of each text included.
        median_tokens: of a text, as it would be encoded.
        p95_tokens: of 95 % of the texts at most.
        most_tokens: of the longest.
        truncated: texts that would be cut.
        out_of_vocabulary: texts with a piece that the bundle dropped.
        repeated_ids: rows with an id that a row before them has.
        tokens_per_s: of the sample, in this process; 0 where there is nothing to encode.
        size_bytes: of the vectors, about: they hardly compress.
    """

    files: int
    shards: int
    rows: int
    rejected: int
    rejections: tuple[Rejection, ...]
    tokens: int
    median_tokens: int
    p95_tokens: int
    most_tokens: int
    truncated: int
    out_of_vocabulary: int
    repeated_ids: int
    tokens_per_s: float
    size_bytes: int


class _Count:
    """What was counted so far."""

    def __init__(self, max_length: int) -> None:
        self.shards = self.truncated = self.out_of_vocabulary = self.distinct = 0
        self.lengths = np.zeros(max_length + 1, np.int64)
        self.hashes: list[NDArray[np.int64]] = []
        self.reasons: Counter[str] = Counter()
        self.places: dict[str, str] = {}
        self.rejected = 0

    def add(self, shard: Shard, rows: Sequence[Row], tokenized: TokenizedTexts, long: Sequence[BadRow]) -> None:
        """Count a shard of which these rows would be encoded, and these are too long."""
        self.shards += 1
        self.truncated += tokenized.truncated
        self.out_of_vocabulary += tokenized.out_of_vocabulary
        np.add.at(self.lengths, tokenized.lengths, 1)
        self.distinct += sum(np.unique(ids).size for ids in tokenized.ids)
        self.hashes.append(np.fromiter((hash(row.id) for row in rows), np.int64))
        self.rejected += len(shard.bad) + len(long)
        for row in (*shard.bad, *long):
            if len(self.places) < _MOST_REASONS:
                self.places.setdefault(row.reason, row.place)
            if row.reason in self.places:
                self.reasons[row.reason] += 1

    def percentile(self, share: float) -> int:
        """Tokens that so many of the texts have at most."""
        total = int(self.lengths.sum())
        return int(np.searchsorted(np.cumsum(self.lengths), share * total)) if total else 0


def check_job(job: BulkJob, limits: BulkLimits, encoder: M3Encoder, progress: Progress) -> JobCheck:
    """Read all inputs of a job, and say what it would do. Nothing is written.

    Args:
        job: its inputs and settings.
        limits: how much would run together.
        encoder: of the job's bundle and variant.
        progress: shows rows and the time that is left, by the bytes of the inputs.

    Raises:
        InputError: an input cannot be read, lacks a column, or changes meanwhile.
    """
    check_beginnings(job.sources, job.columns)
    count, watch, sample = _Count(job.vectors.max_length), SourceWatch(), list[Row]()
    with progress.meter(sum(one.size_bytes for one in job.sources)) as meter:
        for shard in read_shards(job.sources, job.columns, job.shard_rows, watch=watch):
            count.add(shard, *without_long(encoder.tokenizer, job.vectors, shard.rows))
            if not sample:
                sample = list(shard.rows[:: max(1, len(shard.rows) // _SAMPLE_TEXTS)][:_SAMPLE_TEXTS])
            meter.advance(shard.input_bytes, f"{int(count.lengths.sum())} rows")
    watch.check_all()
    rows, tokens = int(count.lengths.sum()), int(count.lengths @ np.arange(len(count.lengths)))
    return JobCheck(
        files=len(job.sources),
        shards=count.shards,
        rows=rows,
        rejected=count.rejected,
        rejections=tuple(Rejection(n, reason, count.places[reason]) for reason, n in count.reasons.most_common()),
        tokens=tokens,
        median_tokens=count.percentile(0.5),
        p95_tokens=count.percentile(0.95),
        most_tokens=count.percentile(1.0),
        truncated=count.truncated,
        out_of_vocabulary=count.out_of_vocabulary,
        repeated_ids=len(came_again(count.hashes)),
        tokens_per_s=_tokens_per_s(encoder, job, limits, sample),
        size_bytes=_size_bytes(job, encoder.bundle.manifest.geometry, rows, tokens, count.distinct),
    )


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
