"""Writing a bundle: complete or absent, whatever happens on the way.

Next to a target OUT there may be, while an export runs or after one was killed:

    .OUT.partial-TOKEN/lock      locked as long as the export runs, on whatever host or in whatever container
    .OUT.partial-TOKEN/bundle/   what it has written so far; renamed to OUT when complete
    .OUT.replaced-TOKEN/         the older bundle, for the moment between two renames
"""

import glob
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from m3_runtime.bundle.manifest import MANIFEST_NAME, FileEntry, Manifest
from m3_runtime.bundle.reader import sha256_of
from m3_runtime.errors import InputError
from m3_runtime.io.atomic import flush_folder, flush_tree

try:
    import fcntl
except ImportError:  # Windows: nothing can be locked, so nothing is ever taken for abandoned
    fcntl = None  # type: ignore[assignment]

_PARTIAL, _REPLACED = "partial", "replaced"
_LOCK_NAME = "lock"


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
    if not is_empty and not is_bundle(out):
        raise InputError(f"{str(out)!r} exists and is not a bundle; --force replaces bundles only, remove it yourself")


def is_bundle(folder: Path) -> bool:
    """Whether the manifest is one of ours, of whatever schema: web pages have a manifest.json too."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and {"schema_version", "space_id"} <= manifest.keys()


@contextmanager
def staging_folder(out: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[Path]:
    """A folder to write the bundle for `out` in, gone at the end unless `publish` renamed it.

    What a killed export left behind is cleared away first: its lock is free. `say` gets to know of what was not.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for nest in _beside(out, _PARTIAL):
        if not _clear_if_abandoned(nest):
            say(f"{str(nest)!r} is of an export that was killed, or still runs; remove it if none does")
    for older in _beside(out, _REPLACED) if not os.path.lexists(out) else ():
        say(f"{str(older)!r} is an older bundle, moved aside by an export that was killed; it goes when this is done")
    nest = _hidden(out, _PARTIAL, secrets.token_hex(8))
    nest.mkdir()
    try:
        with _lock_held(nest):
            staging = nest / "bundle"
            staging.mkdir()
            yield staging
    finally:
        shutil.rmtree(nest, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into a folder that holds everything else."""
    (folder / MANIFEST_NAME).write_bytes(manifest.to_text().encode())


def publish(staging: Path, out: Path) -> None:
    """Flush a finished staging folder to disk and rename it to `out`.

    An older bundle at `out` is moved aside first and removed afterwards; `check_target` decides if that is allowed.
    """
    flush_tree(staging)
    previous = _hidden(out, _REPLACED, _token(staging.parent))
    try:
        if os.path.lexists(out):
            out.rename(previous)
        staging.rename(out)
    except BaseException:
        if os.path.lexists(previous) and not os.path.lexists(out):
            previous.rename(out)
        raise
    flush_folder(out.parent)
    for folder in _beside(out, _REPLACED):
        if folder == previous or not _hidden(out, _PARTIAL, _token(folder)).exists():  # its export is over
            if folder.is_symlink():
                folder.unlink()
            else:
                shutil.rmtree(folder, ignore_errors=True)


def _hidden(out: Path, kind: str, token: str) -> Path:
    return out.parent / f".{out.name}.{kind}-{token}"


def _token(folder: Path) -> str:
    return folder.name.rpartition("-")[2]


def _beside(out: Path, kind: str) -> list[Path]:
    return list(out.parent.glob(f".{glob.escape(out.name)}.{kind}-*"))


@contextmanager
def _lock_held(nest: Path) -> Iterator[None]:
    """Hold a lock in `nest`; the file gets its name when it is locked, so nobody can find it free before that."""
    with (nest / f"{_LOCK_NAME}.new").open("w") as file:
        if _take_lock(file):
            Path(file.name).rename(nest / _LOCK_NAME)
        yield


def _clear_if_abandoned(nest: Path) -> bool:
    """Whether it is known whose it is: it was abandoned, and is gone now, or another process works in it."""
    try:
        with (nest / _LOCK_NAME).open("r+") as lock:  # for writing: NFS locks nothing else
            if taken := _take_lock(lock):
                shutil.rmtree(nest, ignore_errors=True)
    except OSError:
        return not nest.exists()  # without a lock nobody knows; another process may have taken it away meanwhile
    return taken is not None


def _take_lock(file: IO[Any]) -> bool | None:
    """Lock an open file until it is closed or the process ends; False if another process has, None without locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has none
        return None
    return True
