"""Encoders on the nodes of a Ray cluster, each an actor.

    driver's node    reads the inputs, a shard for every actor that is free
    every node       actors, each with an encoder, write shards into the job's folder and give back drafts
    driver           commits the drafts: it alone touches the folder's journal

Where an actor dies, or its node, Ray starts another and gives it the shard again. Needs the extra `ray`.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from m3_runtime.bulk.job import BulkJob
from m3_runtime.bulk.run import EncodeShards, Events
from m3_runtime.bulk.shards import BulkLimits, Shard, ShardDraft, StepDone, encode_shard
from m3_runtime.bulk.workers import as_m3_error
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import BulkError, InputError, M3Error, SpaceMismatchError
from m3_runtime.extras import import_extra

DEFAULT_ACTOR_THREADS = 4
"""Of an actor; one encoder scales over a few cores, several of them over many."""

_ANSWERS_WITHIN_S = 10.0
_TRIES = 5
"""How many actors may die over one shard."""


@contextmanager
def encode_on_cluster(
    open_encoder: Callable[..., M3Encoder],
    address: str | None,
    actors: int | None,
    threads: int | None,
    job: BulkJob,
    limits: BulkLimits,
) -> Iterator[EncodeShards]:
    """Encode in actors on the nodes of a cluster; drafts come as they are done.

    Args:
        open_encoder: opens the job's bundle and variant on any node, given `threads`; it must pickle.
        address: of the cluster; None is the one that RAY_ADDRESS names, or that runs here, or a new one started here.
        actors: how many encoders; None is as many as its nodes have room for.
        threads: of each, which takes as many of Ray's CPUs; None is `DEFAULT_ACTOR_THREADS`, or what the largest node
            has if that is less.
        job: its settings say which vectors to make.
        limits: of each actor.

    Raises:
        ExtraNotInstalledError: Ray is not installed.
        InputError: no cluster answers, or no node of it has room for an encoder.
        BulkError: actors died over and over, or failed with an error that is none of this project's.
        M3Error: what an actor raised.
    """
    ray = import_extra("ray", "ray")
    with _joined(ray, address):
        cpus = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        count, num_cpus = _slots(cpus, actors, threads)
        kind = ray.remote(_ShardEncoder).options(num_cpus=num_cpus, max_restarts=-1, max_task_retries=_TRIES)
        started = [kind.remote(open_encoder, job, limits, num_cpus) for _ in range(count)]

        def encode(shards: Iterator[Shard], partial: Path) -> Events:
            try:
                yield from _encode(ray, started, shards, partial.resolve())
            except ray.exceptions.RayError as error:
                reason = str(error).strip().partition("\n")[0]
                raise BulkError(
                    f"Ray gave up ({reason}); finished shards are kept: run the same command again"
                ) from error

        yield encode


def _encode(ray: Any, actors: Sequence[Any], shards: Iterator[Shard], partial: Path) -> Events:
    waiting = {
        actor.ready.remote(): actor for actor in actors
    }  # a node may have no room yet: such an actor gets nothing
    encoding = 0
    while True:
        (done,), _ = ray.wait(list(waiting))
        actor, outcome = waiting.pop(done), ray.get(done)
        if isinstance(outcome, M3Error):
            raise outcome
        if outcome is not None:
            encoding -= 1
            counts = outcome.counts
            yield StepDone(counts.rows, counts.tokens, counts.input_bytes)
            yield outcome
        if (shard := next(shards, None)) is not None:
            waiting[actor.encode.remote(shard, partial)] = actor
            encoding += 1
        elif not encoding:
            return


class _ShardEncoder:
    """An actor: an encoder on a node. What fails is returned, since Ray would wrap what is raised."""

    def __init__(self, open_encoder: Callable[..., M3Encoder], job: BulkJob, limits: BulkLimits, threads: int) -> None:
        self._job, self._limits = job, limits
        try:
            self._encoder: M3Encoder | M3Error = open_on_node(open_encoder, job, threads)
        except Exception as error:
            self._encoder = as_m3_error(error)

    def ready(self) -> M3Error | None:
        """Whether the encoder opened."""
        return self._encoder if isinstance(self._encoder, M3Error) else None

    def encode(self, shard: Shard, partial: Path) -> ShardDraft | M3Error:
        """The shard's draft, or why there is none."""
        if isinstance(self._encoder, M3Error):  # the actor was started again, on another node
            return self._encoder
        try:
            *_, draft = encode_shard(self._encoder, self._job, self._limits, shard, partial)
        except Exception as error:
            return as_m3_error(error)
        assert isinstance(draft, ShardDraft)
        return draft


def open_on_node(open_encoder: Callable[..., M3Encoder], job: BulkJob, threads: int) -> M3Encoder:
    """Open a node's bundle, if it has the vector space, and of reduced ColBERT rows the axes, of the job.

    Raises:
        SpaceMismatchError: it has another.
        M3Error: it cannot be opened here, or has no axes.
    """
    encoder = open_encoder(threads=threads)
    try:
        found = encoder.colbert_space_id(job.vectors.colbert_dim)
        if found == job.colbert_space_id:
            return encoder
        raise SpaceMismatchError(
            f"the bundle is {found} on one node and {job.colbert_space_id} where the job was started; "
            "put the same bundle on every node"
        )
    except M3Error:
        encoder.close()
        raise


@contextmanager
def _joined(ray: Any, address: str | None) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that we start tells nobody
    named = address or os.environ.get("RAY_ADDRESS", "")
    if named.startswith("ray://"):
        raise InputError(f"{named!r} is an address for clients; run the command on a node of the cluster, without it")
    try:
        host, _, port = named.rpartition(":")
        if port.isdecimal() and "/" not in host:  # Ray itself takes minutes to give up; its other addresses pass
            socket.create_connection((host, int(port)), _ANSWERS_WITHIN_S).close()
        with _sigterm_kept():
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"cannot join a Ray cluster at {named!r} ({error}); start one with `ray start --head`, or leave the "
            "address out to have one on this machine; a cluster with tokens needs RAY_AUTH_MODE=token, RAY_AUTH_TOKEN"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray's ends the process with another status, and prints a stack."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # other threads may not, and there Ray did not
            signal.signal(signal.SIGTERM, before)


def _slots(node_cpus: Sequence[float], actors: int | None, threads: int | None) -> tuple[int, int]:
    """How many actors, and threads of each.

    >>> _slots([16.0, 6.0, 0.0], None, None)
    (5, 4)
    """
    most = int(max(node_cpus, default=0))
    threads = threads or max(1, min(DEFAULT_ACTOR_THREADS, most))
    room = sum(int(cpus) // threads for cpus in node_cpus)
    if not room and not actors:
        raise InputError(
            f"no node of the Ray cluster has the {threads} CPUs of an encoder, the largest has {most}; give fewer "
            "--threads, or --workers if the cluster grows by itself"
        )
    return actors or room, threads
