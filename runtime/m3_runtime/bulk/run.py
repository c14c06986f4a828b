"""A bulk job from its beginning, or from where it stopped, to its end."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from m3_runtime.bulk.folder import JobFolder
from m3_runtime.bulk.job import BulkJob
from m3_runtime.bulk.repeated import repeated_ids
from m3_runtime.bulk.shards import BulkLimits, Shard, ShardDraft, StepDone, encode_shard, read_shards
from m3_runtime.bulk.sources import SourceWatch, check_beginnings
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError
from m3_runtime.extras import import_extra
from m3_runtime.io.progress import Progress
from m3_runtime.io.rows import BadRow

Events = Iterator[StepDone | ShardDraft]

EncodeShards = Callable[[Iterator[Shard], Path], Events]
"""From shards, and the folder to write into, to what becomes of them; drafts may come in another order."""


@dataclass(frozen=True)
class BulkSummary:
    """What a job has made, all its runs together.

    Attributes:
        shards: of the job.
        rows: that were encoded.
        rejected: rows that could not be encoded.
        tokens: that were encoded, both special tokens of each text included.
        truncated: how many texts were cut.
        out_of_vocabulary: how many texts have a piece that the bundle dropped.
        already_done: shards that an earlier run had done.
        taken_away: how many of these are no longer in the folder.
        repeated_ids: rows with an id that a row before them has, as far as their shards were in the folder at the end.
        repeated_id: one such id.
    """

    shards: int
    rows: int
    rejected: int
    tokens: int
    truncated: int
    out_of_vocabulary: int
    already_done: int
    taken_away: int
    repeated_ids: int
    repeated_id: str


def run_job(
    job: BulkJob,
    out: Path,
    open_encode: Callable[[], AbstractContextManager[EncodeShards]],
    progress: Progress,
    *,
    strict: bool,
) -> BulkSummary:
    """Run a job, or the rest of it.

    Args:
        job: its inputs and settings.
        out: the job's folder, begun or not.
        open_encode: opens what encodes; not called if nothing is left.
        progress: shows rows, tokens/s and the time that is left, by the bytes of the inputs.
        strict: a bad row stops the job.

    Raises:
        InputError: an input cannot be read or changed while it was read, the folder holds something else, or a row is
            bad and `strict` is on.
        BulkError: the folder cannot be written.
        EngineError: the engine failed.
    """
    import_extra("pyarrow.parquet", "bulk")  # before anything is begun
    check_beginnings(job.sources, job.columns)
    with JobFolder.open(out, job) as folder:
        already_done, taken_away = len(folder.shards), folder.taken_away()
        if not folder.is_complete:
            with open_encode() as encode:
                _encode_rest(job, folder, encode, progress, strict=strict)
        complete, shards = folder.complete or folder.finish(*repeated_ids(folder.parts)), folder.shards
    return BulkSummary(
        shards=len(shards),
        rows=sum(one.rows for one in shards),
        rejected=sum(one.rejected for one in shards),
        tokens=sum(one.tokens for one in shards),
        truncated=sum(one.truncated for one in shards),
        out_of_vocabulary=sum(one.out_of_vocabulary for one in shards),
        already_done=already_done,
        taken_away=taken_away,
        repeated_ids=complete.repeated_ids,
        repeated_id=complete.repeated_id,
    )


def _encode_rest(job: BulkJob, folder: JobFolder, encode: EncodeShards, progress: Progress, *, strict: bool) -> None:
    total_bytes = sum(one.size_bytes for one in job.sources)
    rows, tokens, watch = 0, 0, SourceWatch()
    with progress.meter(total_bytes, sum(one.input_bytes for one in folder.shards)) as meter:
        for event in encode(_shards_left(job, folder.done, watch, strict=strict), folder.partial):
            if isinstance(event, StepDone):
                rows, tokens = rows + event.rows, tokens + event.tokens
                meter.advance(event.input_bytes, f"{rows} rows, {meter.per_s(tokens):.0f} tokens/s")
                continue
            if strict and event.bad:
                raise _stopped(event.bad[0])
            watch.check_current()  # so that no shard of a changed file is ever done
            folder.commit(event)
    watch.check_all()


def _shards_left(job: BulkJob, done: frozenset[int], watch: SourceWatch, *, strict: bool) -> Iterator[Shard]:
    for shard in read_shards(job.sources, job.columns, job.shard_rows, done, watch):
        if strict and shard.bad:
            raise _stopped(shard.bad[0])
        yield shard


def _stopped(bad: BadRow) -> InputError:
    return InputError(
        f"{bad.place}: {bad.reason}; a strict job stops at a bad row. Finished shards are kept: the same job without "
        "strict goes on and puts such rows into rejected.jsonl; after the input was changed, choose another folder"
    )


@contextmanager
def encode_here(open_encoder: Callable[[], M3Encoder], job: BulkJob, limits: BulkLimits) -> Iterator[EncodeShards]:
    """Encode in this process, one shard after the other."""
    with open_encoder() as encoder:

        def encode(shards: Iterator[Shard], partial: Path) -> Events:
            for shard in shards:
                yield from encode_shard(encoder, job, limits, shard, partial)

        yield encode
