"""Several encoders, each in a process of its own.

    parent  → worker    a shard and where to write it, or the end of the pipe: the worker goes
    worker  → parent    steps, the draft; an error; or the end of the pipe: the worker was killed

Only the parent touches the folder's journal. A worker whose parent was killed finds its pipe closed and goes.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
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


@contextmanager
def encode_in_processes(
    open_encoder: Callable[[], M3Encoder], workers: Sequence[tuple[int, ...]], job: BulkJob, limits: BulkLimits
) -> Iterator[EncodeShards]:
    """Encode in several processes, a shard each at a time; drafts come as they are done.

    `open_encoder` is sent to the workers, so it must pickle. `workers` has the CPUs that each is bound to; none leave
    it to the system.

    Raises:
        BulkError: a worker was killed, or failed with an error that is none of this project's.
        M3Error: what a worker raised.
    """
    started: dict[Connection, SpawnProcess] = {}
    try:
        for cpus in workers:
            pipe, process = _start(open_encoder, cpus, job, limits)
            started[pipe] = process
        yield partial(_encode, started)
    finally:
        for pipe in started:
            pipe.close()
        until = time.monotonic() + _ENDS_WITHIN_S
        for process in started.values():
            process.join(max(until - time.monotonic(), 0))
            if process.is_alive():  # it is still encoding
                process.terminate()
                process.join()


def as_m3_error(error: Exception) -> M3Error:
    """What a worker's error is to the parent: our own errors as they are, any other as a `BulkError` that names it."""
    if isinstance(error, M3Error):
        return error
    return BulkError(f"a worker failed ({type(error).__name__}: {error}); {_GO_ON}")


def _start(
    open_encoder: Callable[[], M3Encoder], cpus: tuple[int, ...], job: BulkJob, limits: BulkLimits
) -> tuple[Connection, SpawnProcess]:
    # Not forked: engines and tokenizers have threads, and those do not survive a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, open_encoder, cpus, job, limits), daemon=True)
    process.start()
    theirs.close()  # so that the pipe ends with the worker
    return ours, process


def _encode(workers: Mapping[Connection, SpawnProcess], shards: Iterator[Shard], folder: Path) -> Events:
    busy: set[Connection] = set()
    idle = list(workers)
    while True:
        while idle and (shard := next(shards, None)) is not None:
            busy.add(pipe := idle.pop())
            with suppress(OSError):  # it is gone; what it said before that is received below
                pipe.send((shard, folder))
        if not busy:
            return
        for ready in wait(list(busy)):
            assert isinstance(ready, Connection)
            event = _received(ready, workers[ready])
            if isinstance(event, ShardDraft):
                busy.remove(ready)
                idle.append(ready)
            yield event


def _received(pipe: Connection, process: SpawnProcess) -> StepDone | ShardDraft:
    try:
        event = pipe.recv()
    except (EOFError, OSError) as error:
        process.join(_GOES_WITHIN_S)
        raise BulkError(
            f"a worker ended without reporting an error (exit code {process.exitcode}; -9 mostly means out of memory); "
            f"{_GO_ON}"
        ) from error
    if isinstance(event, M3Error):
        raise event
    assert isinstance(event, StepDone | ShardDraft)
    return event


def _work(
    pipe: Connection, open_encoder: Callable[[], M3Encoder], cpus: tuple[int, ...], job: BulkJob, limits: BulkLimits
) -> None:
    """What a worker does until its pipe ends."""
    bind_to(cpus)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent too, which closes the pipe
    with suppress(OSError):  # the parent is gone
        try:
            with open_encoder() as encoder:
                while True:
                    shard, folder = pipe.recv()
                    for event in encode_shard(encoder, job, limits, shard, folder):
                        pipe.send(event)
        except EOFError:
            return
        except Exception as error:
            pipe.send(as_m3_error(error))
