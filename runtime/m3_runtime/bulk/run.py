"""A bulk job from its beginning, or from where it stopped, to its end."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from m3_runtime.bulk.arrow import parquet
from m3_runtime.bulk.encode import Limits, ShardDraft, StepDone, encode_shard
from m3_runtime.bulk.folder import JobFolder
from m3_runtime.bulk.job import Job
from m3_runtime.bulk.rows import BadRow
from m3_runtime.bulk.sharding import Shard, read_shards
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError

Events = Iterator[StepDone | ShardDraft]


@dataclass(frozen=True)
class ShardsLeft:
    """The shards of a job that are not done. Iterating reads the inputs, from their beginning, each time.

    Attributes:
        job: what is made of what.
        done: indices of the others.
        strict: a bad row is an error.
    """

    job: Job
    done: frozenset[int]
    strict: bool

    def __iter__(self) -> Iterator[Shard]:
        """Yield them in order.

        Raises:
            InputError: an input cannot be read; or a row is bad, and `strict` is on.
        """
        for shard in read_shards(self.job.sources, self.job.columns, self.job.shard_rows, self.done):
            if self.strict and shard.bad:
                raise _stopped(shard.bad[0])
            yield shard


Encode = Callable[[ShardsLeft, Path], Events]
"""Shards, and the folder for what is being written, to what becomes of them; drafts may come in another order."""


class Report(Protocol):
    """Who is told how it goes."""

    def begin(self, total_bytes: int, done_bytes: int) -> None:
        """The job starts; so much of the inputs was done earlier."""

    def step(self, done: StepDone) -> None:
        """Some rows are encoded."""


@dataclass(frozen=True)
class BulkSummary:
    """What a job has made, all its runs together.

    Attributes:
        shards: of the job.
        rows: that were encoded.
        rejected: rows that could not be.
        tokens: that were encoded, both special tokens of each text included.
        truncated: how many texts were cut.
        already_done: shards that an earlier run had done.
        taken_away: of these, how many are no longer in the folder.
    """

    shards: int
    rows: int
    rejected: int
    tokens: int
    truncated: int
    already_done: int
    taken_away: int


def run_job(
    job: Job, out: Path, open_encode: Callable[[], AbstractContextManager[Encode]], report: Report, *, strict: bool
) -> BulkSummary:
    """Do what is left of a job.

    Args:
        job: what is made of what.
        out: the job's folder, begun or not.
        open_encode: opens what encodes; not called if nothing is left.
        report: is told.
        strict: a bad row stops the job.

    Raises:
        InputError: an input cannot be read, the folder holds something else, or a row is bad and `strict` is on.
        BulkError: the folder cannot be written.
        EngineError: the engine failed.
    """
    parquet()  # before anything is begun
    with JobFolder.open(out, job) as folder:
        already = folder.shards
        taken_away = folder.taken_away()
        if not folder.is_complete:
            with open_encode() as encode:
                report.begin(sum(one.size_bytes for one in job.sources), sum(one.input_bytes for one in already))
                for event in encode(ShardsLeft(job, folder.done, strict), folder.partial):
                    _take(event, folder, report, strict=strict)
            folder.finish()
        return _summary(folder, len(already), taken_away)


@contextmanager
def encode_here(open_encoder: Callable[[], M3Encoder], job: Job, limits: Limits) -> Iterator[Encode]:
    """Encode in this process, one shard after the other.

    Args:
        open_encoder: opens the job's bundle and variant.
        job: what is made of a text.
        limits: how much runs together.
    """
    with open_encoder() as encoder:

        def encode(shards: ShardsLeft, partial: Path) -> Events:
            for shard in shards:
                yield from encode_shard(encoder, job, limits, shard, partial)

        yield encode


def _take(event: StepDone | ShardDraft, folder: JobFolder, report: Report, *, strict: bool) -> None:
    if isinstance(event, StepDone):
        report.step(event)
        return
    if strict and event.bad:
        raise _stopped(event.bad[0])
    folder.commit(event)


def _stopped(bad: BadRow) -> InputError:
    return InputError(
        f"{bad.place}: {bad.reason}; a strict job stops at a bad row. Finished shards are kept: the same job without "
        "strict goes on and puts such rows into rejected.jsonl; after the input was changed, choose another folder"
    )


def _summary(folder: JobFolder, already_done: int, taken_away: int) -> BulkSummary:
    shards = folder.shards
    return BulkSummary(
        shards=len(shards),
        rows=sum(one.rows for one in shards),
        rejected=sum(one.rejected for one in shards),
        tokens=sum(one.tokens for one in shards),
        truncated=sum(one.truncated for one in shards),
        already_done=already_done,
        taken_away=taken_away,
    )
