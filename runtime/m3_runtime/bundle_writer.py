"""Writing a bundle: complete or absent, whatever happens on the way."""

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
    if not out.exists():
        return
    if not force:
        raise InputError(
            f"{str(out)!r} exists; choose another folder, or pass --force to replace the bundle there"
        )
    is_empty = out.is_dir() and not any(out.iterdir())
    if not is_empty and not (out / MANIFEST_NAME).is_file():
        raise InputError(
            f"{str(out)!r} exists and is not a bundle; --force replaces bundles only, remove it yourself"
        )


@contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, gone at the end unless `publish` renamed it.

    What a killed export left behind (its process no longer runs) is cleared away first.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(out)
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
    if out.exists():
        out.rename(previous)
    staging.rename(out)
    _flush([out.parent])
    shutil.rmtree(previous, ignore_errors=True)


def _flush(paths: Iterable[Path]) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _clear_abandoned(out: Path) -> None:
    for folder in out.parent.glob(f".{out.name}.partial-*"):
        pid = folder.name.rpartition("-")[2]
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
