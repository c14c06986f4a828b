"""A folder that keeps a variant's compiled form from one opening to the next, and gives back only what it was given.

OpenVINO writes and reads the form itself (its property CACHE_DIR); it would also run a damaged one. So each variant has
a folder of its own, whose name says for which files, properties and processor it was compiled, and in it a seal with
the release that compiled and the digests of what it wrote. The folder is complete or absent, as a bundle is: it is
written beside its place and renamed.

Only CACHE_MODE=OPTIMIZE_SPEED is used, which is OpenVINO's default. With OPTIMIZE_SIZE OpenVINO 2026.4 takes constants
from the original file again and finds wrong ones: such a model fails at its first run.
"""

import hashlib
import json
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from m3_runtime.bundle import Bundle, sha256_of
from m3_runtime.cpu import cpu_info
from m3_runtime.errors import InputError
from m3_runtime.manifest import Variant

_log = logging.getLogger("m3_runtime")
_SEAL = "seal.json"
_ABANDONED_S = 3600.0

Compiled = TypeVar("Compiled")


def variant_folder(cache_dir: Path, bundle: Bundle, variant: Variant, threads: int) -> Path:
    """Where a variant's compiled form belongs. Anything that it depends on and that changes gives another folder.

    Args:
        cache_dir: the user's cache folder.
        bundle: an open bundle.
        variant: one of its variants.
        threads: threads of one run.
    """
    used = {variant.graph, *variant.files}
    cpu = cpu_info()
    facts = {
        "files": {entry.path: entry.sha256 for entry in bundle.manifest.files if entry.path in used},
        "properties": dict(variant.properties),
        "processor": [cpu.name, cpu.architecture, sorted(cpu.flags)],
        "threads": threads,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_dir / f"{variant.name}-{digest[:32]}"


def checked_cache_dir(cache_dir: str | Path) -> Path:
    """The user's cache folder, made if it is not there.

    Raises:
        InputError: it cannot be made, or is no folder.
    """
    folder = Path(cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cache_dir {str(cache_dir)!r} cannot be used ({error.strerror}); name a folder that may be written"
        ) from error
    return folder.resolve()


def compile_cached(compile_in: Callable[[Path | None], Compiled], folder: Path, release: str) -> Compiled:
    """Compile with a cache: from `folder` if it holds what was written there, else anew, and keep it there.

    Args:
        compile_in: compiles, reading from and writing to the cache folder that it is given; None is no cache.
        folder: of the variant, as `variant_folder` names it.
        release: of the engine that compiles; the form of another is not read.
    """
    if folder.is_dir():
        if _is_intact(folder, release):
            return compile_in(folder)
        _log.warning("the compiled form in %s is damaged or of another release; it is made anew", folder)
        shutil.rmtree(folder, ignore_errors=True)
    _sweep(folder)
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        _log.warning("nothing is kept in %s: %s", folder.parent, error.strerror)
        return compile_in(None)
    try:
        compiled = compile_in(staging)
        _publish(staging, folder, release)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return compiled


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half-written; compiling takes seconds, so what is old is nobody's."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        if left.stat().st_mtime < time.time() - _ABANDONED_S:
            shutil.rmtree(left, ignore_errors=True)


def _publish(staging: Path, folder: Path, release: str) -> None:
    """Seal what was written and put it in its place; if somebody was faster, theirs stays."""
    try:
        (staging / _SEAL).write_text(json.dumps(_seal_of(staging, release)), encoding="utf-8")
        staging.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            _log.warning("nothing is kept in %s: %s", folder.parent, error.strerror)


def _is_intact(folder: Path, release: str) -> bool:
    try:
        return json.loads((folder / _SEAL).read_text(encoding="utf-8")) == _seal_of(folder, release)
    except (OSError, ValueError):
        return False


def _seal_of(folder: Path, release: str) -> dict[str, object]:
    files = sorted(path for path in folder.iterdir() if path.name != _SEAL)
    return {"release": release, "files": {path.name: sha256_of(path) for path in files if path.is_file()}}
