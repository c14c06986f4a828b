"""A bulk job from its beginning, or from where it stopped, to its end."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bulk.folder import JobFolder
from m3_runtime.bulk.job import BulkJob
from m3_runtime.bulk.journal import Complete, ShardDone
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
        shards: all of the job.
        already_done: how many of them an earlier run had done.
        taken_away: how many of these are no longer in the folder.
        complete: says which ids are repeated, as far as their shards were in the folder at the end.
    """

    shards: tuple[ShardDone, ...]
    already_done: int
    taken_away: int
    complete: Complete


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
        if folder.complete is None:
            with open_encode() as encode:
                _encode_rest(job, folder, encode, progress, strict=strict)
        complete = folder.complete or folder.finish(*repeated_ids(folder.parts))
        return BulkSummary(folder.shards, already_done, taken_away, complete)


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
            watch.check(current=True)  # so that no shard of a changed file is ever done
            folder.commit(event)
    watch.check()


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


def repeated_ids(shards: Sequence[Path]) -> tuple[int, str]:
    """How many rows of finished shards have an id that a row before them has, and one such id; 0 and "" where none has.

    They are counted, not removed: only their owner knows which row is meant. An id is held as 8 bytes, its hash: in 10⁸
    rows two ids that differ are taken for one with a chance of 0.03 %.

    Raises:
        InputError: one cannot be read: it was changed.
    """
    repeated = repeated_hashes([np.fromiter(map(hash, _ids(path)), np.int64) for path in shards])
    if not len(repeated):
        return 0, ""
    return len(repeated), next(name for path in shards for name in _ids(path) if hash(name) == repeated[0])


def repeated_hashes(hashes: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Hashes that came before, once for each time that they came again."""
    ordered = np.sort(np.concatenate([np.zeros(0, np.int64), *hashes]))
    return ordered[1:][ordered[1:] == ordered[:-1]]


def _ids(path: Path) -> Iterator[str]:
    pa, pq = import_extra("pyarrow", "bulk"), import_extra("pyarrow.parquet", "bulk")
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["id"], use_threads=False):
                yield from batch.column("id").to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"cannot read {str(path)!r} ({error}): it was changed; put it back, or begin in another folder"
        ) from error
