"""Encoders on the nodes of a Ray cluster, as a pipeline of Ray Data.

    driver's node    reads the inputs, one block a shard      Ray Data holds it back when blocks pile up
    every node       actors, each with an encoder, write shards into the job's folder and give back drafts
    driver           commits the drafts: it alone touches the folder's journal

A node or an actor that goes takes nothing along: Ray Data sends its shard to another. Needs the extra `ray`.
"""

import contextlib
import logging
import os
import pickle
import re
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3_runtime.bulk.arrow import arrow
from m3_runtime.bulk.encode import Limits, ShardDraft, StepDone, encode_shard
from m3_runtime.bulk.job import Job
from m3_runtime.bulk.run import Encode, Events, ShardsLeft
from m3_runtime.bundle.reader import Bundle, Verify
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines.select import choose_variant
from m3_runtime.errors import BulkError, ExtraNotInstalledError, InputError, M3Error, SpaceMismatchError

DEFAULT_ACTOR_THREADS = 4
"""Of an actor; one encoder scales over a few cores, several of them over many."""

_ANSWERS_WITHIN_S = 10.0
_RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): .+$", re.MULTILINE)
_COLUMN = "pickled"


@dataclass(frozen=True)
class BundleOnNode:
    """The job's bundle, as every node finds it.

    Attributes:
        folder: absolute; the same on every node.
        verify: how closely it is looked at, on each.
        variant: to run.
        cache_dir: absolute; on each node its own, or one that they share.
        low_memory: as in `M3Encoder.open`.
        streams: as in `M3Encoder.open`.
    """

    folder: Path
    verify: Verify
    variant: str
    cache_dir: Path | None
    low_memory: bool
    streams: int | str = 1

    def open(self, space_id: str, threads: int) -> M3Encoder:
        """Open it, if it is the one that the driver has seen.

        Raises:
            SpaceMismatchError: it is another.
            M3Error: it cannot be opened here.
        """
        bundle = Bundle.open(self.folder, verify=self.verify)
        if bundle.manifest.space_id != space_id:
            raise SpaceMismatchError(
                f"{str(self.folder)!r} is {bundle.manifest.space_id} on one node and {space_id} where the job was "
                "started; put the same bundle on every node"
            )
        variant = choose_variant(bundle, self.variant)
        return M3Encoder.from_bundle(
            bundle, variant, threads, cache_dir=self.cache_dir, low_memory=self.low_memory, streams=self.streams
        )


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and how encoders are laid over it.

    Attributes:
        address: of the cluster; None is the one that RAY_ADDRESS names, or that runs here, or a new one started here.
        actors: how many encoders; None is as many as its nodes have room for.
        threads: of each, which takes as many of Ray's CPUs; None is `DEFAULT_ACTOR_THREADS`, or what the largest node
            has if that is less.
    """

    address: str | None
    actors: int | None
    threads: int | None


@contextmanager
def encode_on_cluster(bundle: BundleOnNode, cluster: Cluster, job: Job, limits: Limits) -> Iterator[Encode]:
    """Encode in actors on the nodes of a cluster; drafts come as they are done.

    Args:
        bundle: what the actors open.
        cluster: where they are.
        job: what is made of a text.
        limits: how much runs together, in each actor.

    Raises:
        ExtraNotInstalledError: Ray is not installed.
        InputError: no cluster answers, or no node of it has room for an encoder.
        BulkError: Ray gave up.
        M3Error: what reading or encoding raised.
    """
    ray = _ray()
    with _joined(ray, cluster.address):
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        actors, threads = _slots([resources.get("CPU", 0) for resources in nodes.values()], cluster)
        store_bytes = nodes[ray.get_runtime_context().get_node_id()].get("object_store_memory", 0)

        def encode(shards: ShardsLeft, partial: Path) -> Events:
            arguments = (bundle, job, limits, threads, partial.resolve())
            try:
                for pickled in _outcomes(shards, arguments, actors, threads, store_bytes // 2):
                    yield from _events(pickle.loads(pickled))  # noqa: S301 - our own actors wrote it
            except ray.exceptions.RayError as error:
                raise BulkError(
                    f"Ray gave up ({_reason(str(error))}); finished shards are kept: run the same command again"
                ) from error

        yield encode


@contextmanager
def _joined(ray: Any, address: str | None) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that we start tells nobody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data's actors have it print a false alarm each time
    named = address or os.environ.get("RAY_ADDRESS", "")
    if named.startswith("ray://"):
        raise InputError(f"{named!r} is an address for clients; give the command on a node of the cluster, without it")
    try:
        _knock(named)
        with _sigterm_as_before():
            ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"no Ray cluster at {named!r} lets us in ({error}); start one with "
            "`ray start --head`, or leave the address out to have one on this machine; a cluster with tokens wants "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _sigterm_as_before() -> Iterator[None]:
    """Undo that Ray catches SIGTERM: it ends the process with another status, and prints where it was."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():  # others may not, and Ray did not
        signal.signal(signal.SIGTERM, before)


def _knock(address: str) -> None:
    """See that somebody listens at "host:port": Ray itself takes minutes to give up. Its other addresses pass."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), _ANSWERS_WITHIN_S).close()


def _reason(text: str) -> str:
    r"""The error that Ray wraps, out of the traceback that it makes of it.

    >>> _reason("ray::Map()\n  File ...\nMemoryError: no room\n\nThe above ...\nray.UserCodeException: failed\nTo ...")
    'MemoryError: no room'
    >>> _reason("The node died.\n\tid: 7")
    'The node died.'
    """
    raised = _RAISED.search(text)
    return raised[0] if raised else text.strip().partition("\n")[0]


def _slots(node_cpus: Sequence[float], cluster: Cluster) -> tuple[int, int]:
    """How many actors, and threads of each.

    >>> _slots([16.0, 6.0, 0.0], Cluster(None, actors=None, threads=None))
    (5, 4)
    """
    most = int(max(node_cpus, default=0))
    threads = cluster.threads or max(1, min(DEFAULT_ACTOR_THREADS, most))
    room = sum(int(cpus) // threads for cpus in node_cpus)
    if not room and not cluster.actors:
        raise InputError(
            f"no node of the Ray cluster has the {threads} CPUs of an encoder, the largest has {most}; give fewer "
            "--threads, or --workers if the cluster grows by itself"
        )
    return cluster.actors or room, threads


def _outcomes(
    shards: ShardsLeft, arguments: tuple[Any, ...], actors: int, threads: int, ahead_bytes: float
) -> Iterator[bytes]:
    from ray.data import ActorPoolStrategy, DataContext, ExecutionResources, read_datasource

    context = DataContext.get_current()
    context.target_max_block_size = 1  # a shard is a block, and a block is a task
    # What was read lies on this node alone; by itself, Ray Data would fill it with as much as all nodes together hold.
    context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=ahead_bytes)
    context.enable_progress_bars = False  # ours counts bytes and tokens
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that it shows no bar
    # Reading takes no CPU of Ray's, so that on a small cluster the encoders have them all.
    pipeline = read_datasource(_datasource(shards), num_cpus=0, override_num_blocks=1).map(
        _Actor,
        fn_constructor_args=arguments,
        num_cpus=threads,
        compute=ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
    )
    for batch in pipeline.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.column(_COLUMN).to_pylist()


def _datasource(shards: ShardsLeft) -> Any:
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    pa, folder = arrow(), Path.cwd()

    def read() -> Iterator[Any]:
        with contextlib.chdir(folder):  # where the names of the inputs mean what they mean to the driver
            for item in _shards_or_error(shards):
                yield pa.table({_COLUMN: pa.array([pickle.dumps(item)], pa.large_binary())})

    class Shards(Datasource):
        supports_distributed_reads = False  # the driver has seen the inputs; other nodes may not

        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
            return [ReadTask(read, BlockMetadata(None, None, None, None))]

    return Shards()


def _shards_or_error(shards: ShardsLeft) -> Iterator[Any]:
    try:
        yield from shards
    except M3Error as error:
        yield error


class _Actor:
    """An encoder on a node: a row with a shard, or with an error, to a row with what became of it."""

    def __init__(self, bundle: BundleOnNode, job: Job, limits: Limits, threads: int, partial: Path) -> None:
        self._job, self._limits, self._partial = job, limits, partial
        try:
            self._encoder: M3Encoder | M3Error = bundle.open(job.space_id, threads)
        except M3Error as error:  # Ray would try again and again; the first shard carries it to the driver
            self._encoder = error

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        return {_COLUMN: pickle.dumps(self._outcome(pickle.loads(row[_COLUMN])))}  # noqa: S301 - our own task wrote it

    def _outcome(self, item: Any) -> ShardDraft | M3Error:
        if isinstance(item, M3Error):
            return item
        if isinstance(self._encoder, M3Error):
            return self._encoder
        try:
            *_, draft = encode_shard(self._encoder, self._job, self._limits, item, self._partial)
        except M3Error as error:
            return error
        assert isinstance(draft, ShardDraft)
        return draft


def _events(outcome: ShardDraft | M3Error) -> Events:
    if isinstance(outcome, M3Error):
        raise outcome
    yield StepDone(outcome.rows, outcome.tokens, outcome.input_bytes)
    yield outcome


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ExtraNotInstalledError('--ray needs Ray; pip install "m3-runtime[ray]"') from error
    return ray
