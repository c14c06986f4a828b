"""Writing a bundle: complete or absent, whatever happens on the way."""

import glob
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from m3_runtime.bundle import sha256_of
from m3_runtime.errors import InputError
from m3_runtime.manifest import MANIFEST_NAME, FileEntry, Manifest


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Every file below `folder` but the manifest, with size and digest, sorted by path."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST_NAME)
    return tuple(FileEntry(p.relative_to(folder).as_posix(), p.stat().st_size, sha256_of(p)) for p in paths)


def check_target(out: Path, *, force: bool) -> None:
    """Refuse a target that must not be written over.

    Raises:
        InputError: `out` exists and `force` is off, or it is something other than a bundle or an empty folder.
    """
    if not os.path.lexists(out):  # a dangling link is something too
        return
    if not force:
        raise InputError(f"{str(out)!r} exists; choose another folder, or pass --force to replace the bundle there")
    is_empty = out.is_dir() and not any(out.iterdir())
    if not is_empty and not _is_bundle(out):
        raise InputError(f"{str(out)!r} exists and is not a bundle; --force replaces bundles only, remove it yourself")


def _is_bundle(folder: Path) -> bool:
    """Whether the manifest is one of ours, of whatever schema: web pages have a manifest.json too."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"schema_version", "space_id"} <= manifest.keys()


@contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, gone at the end unless `publish` renamed it.

    What a killed export left behind (its process no longer runs) is cleared away first.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for folder in _abandoned(out, "partial"):
        _remove(folder)
    folder = out.parent / f".{out.name}.partial-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into a folder that holds everything else."""
    (folder / MANIFEST_NAME).write_text(manifest.to_text(), encoding="utf-8")


def publish(staging: Path, out: Path) -> None:
    """Flush a finished staging folder to disk and rename it to `out`.

    An older bundle at `out` is moved aside first and removed afterwards; `check_target` decides if that is allowed.
    """
    _flush(path for path in staging.rglob("*"))
    _flush([staging])
    previous = out.parent / f".{out.name}.replaced-{os.getpid()}"
    if os.path.lexists(out):
        out.rename(previous)
    try:
        staging.rename(out)
    except OSError:
        if os.path.lexists(previous):
            previous.rename(out)
        raise
    _flush([out.parent])
    for folder in _abandoned(out, "replaced"):
        _remove(folder)


def _flush(paths: Iterable[Path]) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _abandoned(out: Path, kind: str) -> list[Path]:
    """Folders that a process which no longer runs left beside `out`.

    One with this process's own id is from before it began: in a container, every export may be process 1.
    """
    found = out.parent.glob(f".{glob.escape(out.name)}.{kind}-*")
    return [p for p in found if (pid := p.name.rpartition("-")[2]).isdigit() and not _is_other_running(int(pid))]


def _is_other_running(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
