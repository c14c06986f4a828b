"""What several processes of a run need, made by the first that asks for it."""

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """A file or folder that the first process to ask for makes, and for which the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f"{path.name}.lock")):
        if not path.exists():
            try:
                make(path)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)
                raise
    return path
