"""Several encoders, each in a process of its own.

    parent  → worker    a shard and where to write it, or the end of the pipe: the worker goes
    worker  → parent    steps, the draft; an error; or the end of the pipe: the worker was killed

Only the parent touches the folder's journal. A worker whose parent was killed finds its pipe closed and goes.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from m3_runtime.bulk.job import BulkJob
from m3_runtime.bulk.run import EncodeShards, Events
from m3_runtime.bulk.shards import BulkLimits, Shard, ShardDraft, StepDone, encode_shard
from m3_runtime.cores import bind_to
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import BulkError, M3Error

_GOES_WITHIN_S = 5.0  # once its pipe has ended
_ENDS_WITHIN_S = 1.0  # all of them together, once they are not needed: Ctrl-C waits for it
_GO_ON = "finished shards are kept: run the same command again, with fewer workers if memory was short"


@dataclass(frozen=True)
class _Worker:
    pipe: Connection
    process: SpawnProcess


@contextmanager
def encode_in_processes(
    open_encoder: Callable[[], M3Encoder], workers: Sequence[tuple[int, ...]], job: BulkJob, limits: BulkLimits
) -> Iterator[EncodeShards]:
    """Encode in several processes, a shard each at a time; drafts come as they are done.

    Args:
        open_encoder: opens the job's bundle and variant; it is sent to the workers, so it must pickle.
        workers: of each the CPUs that it is bound to; none leave it to the system.
        job: its settings say which vectors to make.
        limits: how much runs together, in each worker.

    Raises:
        BulkError: a worker was killed, or failed with an error that is none of this project's.
        M3Error: what a worker raised.
    """
    started: list[_Worker] = []
    try:
        started.extend(_start(open_encoder, cpus, job, limits) for cpus in workers)

        def encode(shards: Iterator[Shard], partial: Path) -> Events:
            return _encode(started, shards, partial)

        yield encode
    finally:
        for worker in started:
            worker.pipe.close()
        until = time.monotonic() + _ENDS_WITHIN_S
        for worker in started:
            _end(worker.process, until - time.monotonic())


def as_m3_error(error: Exception) -> M3Error:
    """What a worker's error is to the parent: our own errors as they are, any other as a `BulkError` that names it."""
    if isinstance(error, M3Error):
        return error
    return BulkError(f"a worker failed ({type(error).__name__}: {error}); {_GO_ON}")


def _start(open_encoder: Callable[[], M3Encoder], cpus: tuple[int, ...], job: BulkJob, limits: BulkLimits) -> _Worker:
    # Not forked: engines and tokenizers have threads, and those do not survive a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, open_encoder, cpus, job, limits), daemon=True)
    process.start()
    theirs.close()  # so that the pipe ends with the worker
    return _Worker(ours, process)


def _encode(workers: list[_Worker], shards: Iterator[Shard], partial: Path) -> Events:
    busy: dict[Connection, _Worker] = {}
    idle = list(workers)
    while True:
        while idle and (shard := next(shards, None)) is not None:
            worker = idle.pop()
            with suppress(OSError):  # it is gone; what it said before that is received below
                worker.pipe.send((shard, partial))
            busy[worker.pipe] = worker
        if not busy:
            return
        for pipe in wait(list(busy)):
            assert isinstance(pipe, Connection)
            event = _received(busy[pipe])
            if isinstance(event, ShardDraft):
                idle.append(busy.pop(pipe))
            yield event


def _received(worker: _Worker) -> StepDone | ShardDraft:
    try:
        event = worker.pipe.recv()
    except (EOFError, OSError) as error:
        worker.process.join(_GOES_WITHIN_S)
        code = worker.process.exitcode
        raise BulkError(
            f"a worker ended without reporting an error (exit code {code}; -9 mostly means out of memory); {_GO_ON}"
        ) from error
    if isinstance(event, M3Error):
        raise event
    assert isinstance(event, StepDone | ShardDraft)
    return event


def _work(
    pipe: Connection,
    open_encoder: Callable[[], M3Encoder],
    cpus: tuple[int, ...],
    job: BulkJob,
    limits: BulkLimits,
) -> None:
    """What a worker does until its pipe ends."""
    bind_to(cpus)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent too, which closes the pipe
    with suppress(OSError):  # the parent is gone
        try:
            with open_encoder() as encoder:
                while True:
                    shard, partial = pipe.recv()
                    for event in encode_shard(encoder, job, limits, shard, partial):
                        pipe.send(event)
        except EOFError:
            return
        except Exception as error:
            pipe.send(as_m3_error(error))


def _end(process: SpawnProcess, within_s: float) -> None:
    """Wait for a worker that has nothing to do; end one that is still encoding."""
    process.join(max(within_s, 0))
    if process.is_alive():
        process.terminate()
        process.join()
