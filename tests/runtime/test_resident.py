"""Giving memory back: it falls, results stay the same to the bit, and nothing that can be written is touched."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from m3_runtime import M3Encoder
from m3_runtime.engines import resident

ALL = {"return_sparse": True, "return_colbert_vecs": True}
MIB = 2**20


def kib(path: Path, of: str = "Rss") -> int:
    """Resident pages of all mappings of a file, or their `Size`."""
    total, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, value = line.partition(":")
        if "-" in key and " " in key:
            is_ours = line.endswith(str(path))
        elif key == of and is_ours:
            total += int(value.split()[0])
    return total


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    path = tmp_path / "weights with blanks.bin"
    path.write_bytes(np.random.default_rng(0).bytes(4 * MIB))
    return path


def mapped(path: Path, access: int) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0, access=access)


def test_pages_of_a_mapped_file_are_let_go_and_read_again(big_file):
    with resident.mapping(big_file.parent) as files:
        memory = mapped(big_file, mmap.ACCESS_READ)
    content = memory[:]
    assert kib(big_file) >= 4096
    assert files.let_go() == 4 * MIB
    assert kib(big_file) == 0
    assert memory[:] == content == big_file.read_bytes()


def test_a_renamed_file_is_still_the_same(big_file):
    with resident.mapping(big_file.parent) as files:
        memory = mapped(big_file, mmap.ACCESS_READ)
    big_file.rename(big_file.with_name("renamed"))
    assert files.let_go() == 4 * MIB
    assert len(memory) == 4 * MIB


def test_a_link_of_the_folder_is_the_file_that_it_leads_to(big_file, tmp_path_factory):
    """As in the hub's cache."""
    link = tmp_path_factory.mktemp("snapshot") / "weights.bin"
    link.symlink_to(big_file)
    with resident.mapping(link.parent) as files:
        memory = mapped(link, mmap.ACCESS_READ)
    assert sum(memory[:4096]) and files.let_go() == 4 * MIB


@pytest.mark.parametrize("access", [mmap.ACCESS_COPY, mmap.ACCESS_WRITE])
def test_what_can_be_written_is_left_alone(big_file, access):
    """Dropping a private page that was written to would lose what was written."""
    with resident.mapping(big_file.parent) as files:
        memory = mapped(big_file, access)
    memory[:4] = b"new!"
    assert files.let_go() == 0
    assert memory[:4] == b"new!"


def test_mappings_of_others_are_left_alone(big_file, tmp_path_factory):
    before = mapped(big_file, mmap.ACCESS_READ)
    elsewhere = tmp_path_factory.mktemp("other") / "file"
    elsewhere.write_bytes(b"x" * MIB)
    with resident.mapping(big_file.parent) as files:
        outside = mapped(elsewhere, mmap.ACCESS_READ)
    after = mapped(big_file, mmap.ACCESS_READ)
    assert all(sum(memory[:4096]) for memory in (before, outside, after))
    assert files.let_go() == 0


def test_a_closed_mapping_is_no_mapping(big_file):
    with resident.mapping(big_file.parent) as files:
        memory = mapped(big_file, mmap.ACCESS_READ)
    memory.close()
    anonymous = mmap.mmap(-1, 4 * MIB)  # may well take the freed addresses
    anonymous[:4] = b"kept"
    assert files.let_go() == 0
    assert anonymous[:4] == b"kept"


def test_an_opening_that_fails_does_not_block_the_next(tmp_path):
    with pytest.raises(RuntimeError), resident.mapping(tmp_path):
        raise RuntimeError
    with resident.mapping(tmp_path) as files:
        pass
    assert files.let_go() == 0


def test_trimming_the_heap_loses_nothing():
    rows = [np.arange(1000) + i for i in range(2000)]
    del rows[::2]
    resident.trim_heap()
    assert all(row[0] == 2 * i + 1 for i, row in enumerate(rows))


def test_openvino_lets_its_weights_go_and_gives_the_same(bundle_copy, texts):
    weights = bundle_copy / "openvino" / "openvino_model.bin"
    with M3Encoder.open(bundle_copy, variant="openvino-int8", threads=2) as encoder:
        first = encoder.encode(texts, **ALL)
        again = [encoder.encode(texts, **ALL) for _ in range(3)]
        encoder.engine.rest(1)
        assert kib(weights, "Size") * 1024 >= weights.stat().st_size // 2
        assert kib(weights) == 0
        again.append(encoder.encode(texts, **ALL))
    for other in again:
        assert np.array_equal(first.dense_vecs, other.dense_vecs)
        assert np.array_equal(first.sparse.weights, other.sparse.weights)
        assert all(map(np.array_equal, first.colbert_vecs, other.colbert_vecs))
