import os
import stat

import pytest

from m3_runtime.io.atomic import flush_tree, new_file, put_in_place, whole_file, write_whole


@pytest.fixture
def flushed(monkeypatch) -> list[str]:
    """What was flushed to disk, in order: "file" or "folder"."""
    kinds = []
    real = os.fsync

    def fsync(handle):
        kinds.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return kinds


def test_a_file_is_absent_until_it_is_whole_and_on_disk(tmp_path, flushed):
    target = tmp_path / "a.bin"
    with whole_file(target) as file:
        file.write(b"half")
        assert not target.exists()
        assert flushed == []
    assert target.read_bytes() == b"half"
    assert flushed == ["file", "folder"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_fails_leaves_the_older_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.bin"
    write_whole(target, b"older")
    with pytest.raises(KeyboardInterrupt), whole_file(target) as file:
        file.write(b"newer")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [target]


def test_a_target_that_cannot_be_replaced_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="device or pipe, which is not replaced"):
        write_whole(tmp_path / "pipe", b"data")
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_and_what_it_points_at_is_replaced(tmp_path):
    (tmp_path / "real").write_text("older")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", b"newer")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "newer"


def test_a_new_file_is_never_somebody_elses(tmp_path):
    path = tmp_path / "a.bin"
    path.write_text("mine")
    with pytest.raises(FileExistsError), new_file(path):
        pass
    assert path.read_text() == "mine"


def test_a_tree_is_flushed_before_it_gets_its_name(tmp_path, flushed):
    tree = tmp_path / "partial"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "a").write_text("a")
    (tree / "b").write_text("b")
    flush_tree(tree)
    assert sorted(flushed) == ["file", "file", "folder", "folder"]
    put_in_place(tree, tmp_path / "whole")
    assert (tmp_path / "whole" / "inner" / "a").read_text() == "a"
    assert flushed[-1] == "folder"
