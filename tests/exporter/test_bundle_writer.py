"""A bundle is complete or absent, and nothing else is ever replaced or removed."""

import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from m3_runtime import Bundle
from m3_runtime.bundle import writer
from m3_runtime.bundle.manifest import FileEntry
from m3_runtime.bundle.writer import check_target, list_files, publish, staging_folder, write_manifest
from m3_runtime.errors import InputError

MANIFEST = json.dumps({"schema_version": 1, "space_id": "m3-0"})
DEAD, RUNNING = "0123", "4567"  # tokens of exports that were killed and that run


def bundle_at(folder: Path, content: str = "old") -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(MANIFEST)
    (folder / "content").write_text(content)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# The target


@pytest.mark.parametrize("force", [True, False])
def test_nothing_there_is_a_good_target(tmp_path: Path, force: bool):
    check_target(tmp_path / "out", force=force)
    check_target(tmp_path / "not/yet/there", force=force)


def test_a_bundle_is_replaced_with_force_only(tmp_path: Path):
    out = bundle_at(tmp_path / "out")
    with pytest.raises(InputError, match=r"out' exists; choose another folder, or pass --force"):
        check_target(out, force=False)
    check_target(out, force=True)


@pytest.mark.parametrize("schema", [0, 1, 99])
def test_bundles_of_other_releases_are_bundles(tmp_path: Path, schema: int):
    out = bundle_at(tmp_path / "out")
    (out / "manifest.json").write_text(json.dumps({"schema_version": schema, "space_id": "m3-0", "new": 1}))
    check_target(out, force=True)


def test_an_empty_folder_is_taken_with_force(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="exists"):
        check_target(tmp_path / "out", force=False)
    check_target(tmp_path / "out", force=True)


def a_file(out: Path) -> None:
    out.write_text("precious")


def a_folder(out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("precious")


def a_web_extension(out: Path) -> None:
    a_folder(out)
    (out / "manifest.json").write_text('{"manifest_version": 3, "name": "mine"}')


def a_damaged_manifest(out: Path) -> None:
    a_folder(out)
    (out / "manifest.json").write_bytes(b"\xff{")


def a_list(out: Path) -> None:
    a_folder(out)
    (out / "manifest.json").write_text('["schema_version", "space_id"]')


def a_dangling_link(out: Path) -> None:
    out.symlink_to("nowhere")


@pytest.mark.parametrize(
    "make", [a_file, a_folder, a_web_extension, a_damaged_manifest, a_list, a_dangling_link], ids=lambda f: f.__name__
)
def test_what_is_no_bundle_is_refused_with_force_too(tmp_path: Path, make):
    out = tmp_path / "out"
    make(out)
    with pytest.raises(InputError, match="exists; choose another folder"):
        check_target(out, force=False)
    with pytest.raises(
        InputError, match="exists and is not a bundle; --force replaces bundles only, remove it yourself"
    ):
        check_target(out, force=True)


# The staging folder


def test_the_staging_folder_is_beside_the_target_and_gone_at_the_end(tmp_path: Path):
    out = tmp_path / "deep/out"
    with staging_folder(out) as staging:
        nest = staging.parent
        assert nest.parent == out.parent and staging.is_dir() and nest.name.startswith(".out.partial-")
        assert staging.stat().st_mode == out.parent.stat().st_mode, "it becomes the bundle: others may read it"
        assert names(staging) == set()
        (staging / "half").write_text("x")
        assert not out.exists()
    assert names(out.parent) == set()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_any_error_leaves_nothing_and_passes_on(tmp_path: Path, error: type[BaseException]):
    with pytest.raises(error), staging_folder(tmp_path / "out") as staging:
        (staging / "half").write_text("x")
        raise error
    assert names(tmp_path) == set()


@pytest.mark.parametrize("name", ["out", "out [v1]", "a*b", "ö"])
def test_what_a_killed_export_left_is_cleared_and_only_that(tmp_path: Path, name: str):
    left, running = (tmp_path / f".{name}.partial-{token}" for token in (DEAD, RUNNING))
    without_lock = tmp_path / f".{name}.partial-note"
    others = [running.name, without_lock.name, f".{name}2.partial-{DEAD}", f"{name}.partial-{DEAD}"]
    for folder in (left.name, *others):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "half").write_text("x")
        (tmp_path / folder / "lock").touch()
    (without_lock / "lock").unlink()
    with (running / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said: list[str] = []
        with staging_folder(tmp_path / name, said.append):
            assert not left.exists()
    assert names(tmp_path) == set(others)
    (line,) = said
    assert repr(str(without_lock)) in line and "remove it if none does" in line


def test_two_exports_in_one_process_do_not_meet(tmp_path: Path):
    # and process ids say nothing: in a container every export may be process 1
    with staging_folder(tmp_path / "out") as first, staging_folder(tmp_path / "out") as second:
        assert first != second and first.is_dir() and second.is_dir()
    assert names(tmp_path) == set()


@pytest.mark.parametrize("break_locks", ["no fcntl", "no locks"])
def test_without_locks_nothing_is_cleared_and_exports_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, break_locks: str
):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    left = tmp_path / f".out.partial-{DEAD}"
    left.mkdir()
    (left / "lock").touch()
    if break_locks == "no fcntl":
        monkeypatch.setattr(writer, "fcntl", None)
    else:
        monkeypatch.setattr(fcntl, "flock", refuse)
    said: list[str] = []
    with staging_folder(tmp_path / "out", said.append) as staging:
        assert "lock" not in names(staging.parent), "others would find it free"
        publish(staging, tmp_path / "out")
    assert [str(left) in line for line in said] == [True]
    assert names(tmp_path) == {left.name, "out"}


def test_two_exports_side_by_side_do_not_meet(tmp_path: Path):
    out = tmp_path / "out"
    script = (
        "import sys; from pathlib import Path; from m3_runtime.bundle.writer import staging_folder\n"
        "with staging_folder(Path(sys.argv[1])) as folder: print(folder, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with staging_folder(out) as ours:
            assert ours != theirs and theirs.is_dir(), "a running export's folder must not be cleared"
        other.communicate("")
    assert names(tmp_path) == set()


def test_kill_9_leaves_a_leftover_and_no_target(tmp_path: Path):
    out = tmp_path / "out"
    script = (
        "import os, sys; from pathlib import Path; from m3_runtime.bundle.writer import staging_folder\n"
        "with staging_folder(Path(sys.argv[1])) as folder: (folder / 'half').write_text('x'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(out)], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.partial-") and names(left) == {"lock", "bundle"}
    assert names(left / "bundle") == {"half"}
    with staging_folder(out):
        assert not left.exists()
    assert names(tmp_path) == set()


# Publishing


def test_publishing_renames_the_whole_folder(tmp_path: Path):
    out = tmp_path / "out"
    with staging_folder(out) as staging:
        (staging / "onnx").mkdir()
        (staging / "onnx/model.onnx").write_text("graph")
        publish(staging, out)
        assert (out / "onnx/model.onnx").read_text() == "graph"
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("is_link", [False, True], ids=["folder", "link"])
def test_publishing_replaces_the_older_bundle(tmp_path: Path, is_link: bool):
    out = tmp_path / "out"
    if is_link:
        out.symlink_to(bundle_at(tmp_path / "v1"))
    else:
        bundle_at(out)
    with staging_folder(out) as staging:
        (staging / "content").write_text("new")
        publish(staging, out)
    assert (out / "content").read_text() == "new"
    assert not out.is_symlink()
    assert names(tmp_path) == ({"out", "v1"} if is_link else {"out"})
    if is_link:
        assert (tmp_path / "v1/content").read_text() == "old", "what a link points at is not ours to remove"


def test_an_older_bundle_comes_back_when_publishing_fails(tmp_path: Path):
    out = bundle_at(tmp_path / "out")
    with pytest.raises(OSError, match="missing"):
        publish(tmp_path / "missing", out)
    assert (out / "content").read_text() == "old"
    assert names(tmp_path) == {"out"}


def test_what_a_kill_while_publishing_moved_aside_is_kept_until_the_next_success(tmp_path: Path):
    out, aside = tmp_path / "out", bundle_at(tmp_path / f".out.replaced-{DEAD}")
    said: list[str] = []
    with pytest.raises(ValueError, match="failed"), staging_folder(out, said.append):
        raise ValueError("failed")
    assert [str(aside) in line for line in said] == [True]
    assert (aside / "content").read_text() == "old", "it is the only bundle there is"
    with staging_folder(out) as staging:
        publish(staging, out)
    assert names(tmp_path) == {"out"}


def test_what_a_running_export_moved_aside_is_kept(tmp_path: Path):
    out, aside = tmp_path / "out", bundle_at(tmp_path / f".out.replaced-{RUNNING}")
    nest = tmp_path / f".out.partial-{RUNNING}"
    nest.mkdir()
    with (nest / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with staging_folder(out) as staging:
            publish(staging, out)
    assert names(tmp_path) == {"out", nest.name, aside.name}


def test_publishing_twice_in_one_process(tmp_path: Path):
    out = tmp_path / "out"
    bundle_at(tmp_path / f".out.replaced-{os.getpid()}")
    for content in ("first", "second"):
        with staging_folder(out) as staging:
            (staging / "content").write_text(content)
            publish(staging, out)
        assert (out / "content").read_text() == content
    assert names(tmp_path) == {"out"}


# The list of files


def test_files_are_listed_sorted_with_size_and_digest_and_without_the_manifest(tmp_path: Path):
    (tmp_path / "onnx").mkdir()
    for path, content in (("tokenizer.json", b"{}"), ("onnx/b", b"bb"), ("onnx/a", b""), ("onnx/manifest.json", b"x")):
        (tmp_path / path).write_bytes(content)
    (tmp_path / "manifest.json").write_text(MANIFEST)
    assert list_files(tmp_path) == tuple(
        FileEntry(path, len(content), hashlib.sha256(content).hexdigest())
        for path, content in (
            ("onnx/a", b""),
            ("onnx/b", b"bb"),
            ("onnx/manifest.json", b"x"),
            ("tokenizer.json", b"{}"),
        )
    )


def test_a_written_manifest_reads_back_the_same(tiny_bundle: Path, tmp_path: Path):
    bundle = Bundle.open(tiny_bundle, verify="full")
    assert list_files(tiny_bundle) == bundle.manifest.files
    write_manifest(tmp_path, bundle.manifest)
    assert (tmp_path / "manifest.json").read_bytes() == (tiny_bundle / "manifest.json").read_bytes()
