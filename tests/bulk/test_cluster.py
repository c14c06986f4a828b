"""A Ray cluster of two nodes on this machine: the same shards, the same safety."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.dataset
import pytest

from m3_runtime import Bundle, InputError, M3Encoder, SpaceMismatchError, VariantError
from m3_runtime.bulk.cluster import encode_on_cluster, open_on_node
from m3_runtime.bulk.job import BulkJob, VectorSettings
from m3_runtime.bulk.shards import BulkLimits
from m3_runtime.bundle.manifest import Head
from m3_runtime.io.rows import Columns

RAY = Path(sys.executable).with_name("ray")
HEAD_BYTES = 100_000_000
"""What the node of the driver holds of read shards and the like."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes with a CPU each, one of much memory; the environment has its token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # Ray's sockets lie in its folder, and a socket's name has 107 bytes at most: pytest's own folders are too deep.
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(prefix="ray") as folder:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", folder)
        node = [str(RAY), "start", "--block", "--num-cpus=1", "--disable-usage-stats", "--include-log-monitor=false"]
        head = [*node, f"--object-store-memory={HEAD_BYTES}", "--head", "--include-dashboard=false"]
        head.append("--node-ip-address=127.0.0.1")
        with process_group([*head, f"--port={address.rpartition(':')[2]}"]) as first:
            wait_for(address, first)
            with process_group([*node, f"--object-store-memory={20 * HEAD_BYTES}", f"--address={address}"]):
                yield address


@contextmanager
def process_group(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed with all its children: Ray's own way to stop takes half a minute."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(address: str, head: subprocess.Popen[bytes]) -> None:
    host, _, port = address.rpartition(":")
    while True:
        assert head.poll() is None, "the cluster did not start"
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            time.sleep(0.1)


def test_nodes_write_what_one_process_writes_though_encoders_are_killed(work, cluster):
    source, more = work.numbered(200, bad_every=11), ("--heads", "dense,sparse,colbert", "--shard-rows", 5)
    with work.started(source, *more, "--ray-address", cluster, "--workers", 2) as process:
        killed = actors()
        for number in killed:
            os.kill(number, signal.SIGKILL)
        _, said = process.communicate(timeout=300)
    assert killed
    assert process.returncode == 0, said
    assert "tokens/s [" in said
    ids, rejected = work.ids(), work.rejected()
    found = pyarrow.dataset.dataset(work.out / "vectors").to_table()
    work.out = work.folder / "alone"
    assert work.run(source, *more).returncode == 0
    assert found.equals(pyarrow.dataset.dataset(work.out / "vectors").to_table())
    assert ids == work.ids() == [f"t{i}" for i in range(200) if i % 11 != 10]
    assert sorted(row["place"] for row in rejected) == sorted(row["place"] for row in work.rejected())


def test_the_driver_is_killed_and_the_job_goes_on_without_the_cluster(work, cluster):
    source, more = work.numbered(300), ("--shard-rows", 5)
    with work.started(source, *more, "--ray-address", cluster) as process:
        process.kill()
        process.communicate(timeout=300)
    assert 20 <= len(work.ids()) < 300
    done = work.run(source, *more)
    assert done.returncode == 0, done.stderr
    assert "shards were done already" in done.stderr
    assert work.ids() == [f"t{i}" for i in range(300)]


def test_reading_waits_when_encoders_do_and_a_signal_ends_the_job_as_it_does_without(work, cluster):
    source = work.write([{"text": "word " * 200_000}] * 200)  # 1 MB each
    assert source.stat().st_size > 2 * HEAD_BYTES
    with work.started(source, "--shard-rows", 1, "--ray-address", cluster) as process:
        for number in actors():
            os.kill(number, signal.SIGSTOP)
        earlier, read_bytes = -1, 0
        while read_bytes > earlier:
            time.sleep(2)
            earlier, read_bytes = read_bytes, position(source)
        process.terminate()
        _, said = process.communicate(timeout=300)
    assert 0 < read_bytes < HEAD_BYTES  # 0: it was read to its end, and closed
    assert process.returncode == -signal.SIGTERM
    assert "SIGTERM" not in said


def test_a_bad_row_and_a_bad_setting_are_said_as_they_are_without(work, cluster):
    source = work.numbered(40, bad_every=40)
    (work.folder / "cache").write_text("not a folder")
    for more in (("--strict",), ("--variant", "openvino-int8", "--cache-dir", work.folder / "cache")):
        work.out = work.folder / f"alone{len(more)}"
        alone = work.run(source, *more)
        work.out = work.folder / f"cluster{len(more)}"
        done = work.run(source, *more, "--ray-address", cluster)
        assert done.returncode == alone.returncode == 2
        assert done.stderr.splitlines()[-1] == alone.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_no_cluster_there(work):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = work.run(work.numbered(5), "--ray-address", address)
        client = work.run(work.numbered(5), "--ray-address", f"ray://{address}")
    assert done.returncode == client.returncode == 2
    assert "run the command on a node of the cluster" in client.stderr
    assert f"cannot join a Ray cluster at '{address}'" in done.stderr


def test_a_cluster_that_cannot_be_joined_leaves_the_handler_of_sigterm(tiny_bundle):
    job = BulkJob("m3-1", "onnx-fp32", VectorSettings((Head.DENSE,), 512), 5, Columns(), ())
    opening = partial(M3Encoder.open, tiny_bundle)
    before = signal.signal(signal.SIGTERM, mine := lambda *_: None)
    try:
        with (
            pytest.raises(InputError, match="cannot join a Ray cluster"),
            encode_on_cluster(opening, "nowhere", None, None, job, BulkLimits()),
        ):
            pass
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_no_room_for_an_encoder(work, cluster):
    done = work.run(work.numbered(5), "--ray-address", cluster, "--threads", 3)
    assert done.returncode == 2
    assert "no node of the Ray cluster has the 3 CPUs of an encoder, the largest has 1" in done.stderr


def test_a_node_with_another_bundle_is_refused(tiny_bundle):
    space_id, pca = Bundle.open(tiny_bundle).manifest.space_id, Bundle.open(tiny_bundle).colbert_pca.sha256
    reduced = VectorSettings((Head.COLBERT,), 32, colbert_dim=4, colbert_pca=pca)
    job = BulkJob(space_id, "onnx-fp32", reduced, 10, Columns(), ())
    opening = partial(M3Encoder.open, tiny_bundle, variant="onnx-fp32")
    with open_on_node(opening, job, threads=1) as encoder:
        assert encoder.space_id == space_id
    with pytest.raises(SpaceMismatchError, match="put the same bundle on every node"):
        open_on_node(opening, replace(job, space_id="m3-another"), threads=1)
    other_axes = replace(job, vectors=replace(reduced, colbert_pca="f" * 64))
    with pytest.raises(SpaceMismatchError, match=f"is {space_id}/4-{pca[:8]} on one node and {space_id}/4-ffffffff"):
        open_on_node(opening, other_axes, threads=1)
    with pytest.raises(VariantError, match="onnx-fp64"):
        open_on_node(partial(opening, variant="onnx-fp64"), job, threads=1)


def actors() -> list[int]:
    """Processes of this test's cluster that hold an encoder."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and "_ShardEncoder" in (folder / "cmdline").read_text():
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                if os.environ["RAY_TMPDIR"] in (Path("/proc") / parent / "cmdline").read_text():
                    found.append(int(folder.name))
        except OSError:  # it has gone
            continue
    return found


def position(source: Path) -> int:
    """How far somebody has read a file."""
    for folder in Path("/proc").iterdir():
        try:
            for link in (folder / "fd").iterdir():
                if link.readlink() == source:
                    return int((folder / "fdinfo" / link.name).read_text().split()[1])
        except OSError:  # no process, not ours, or it has gone
            continue
    return 0
