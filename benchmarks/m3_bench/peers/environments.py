"""The peers' environments: each a venv of its own, made of its pinned requirements when it is first needed."""

import hashlib
import importlib.util
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from m3_bench.errors import PeerError, WorkerError
from m3_bench.worker_process import run_to_end
from m3_runtime.io.progress import Progress

_READY = "ready"
_TORCH = re.compile(r"^torch==\S+$", re.MULTILINE)


class Peer(StrEnum):
    """Another BGE-M3 runtime."""

    LITE = "bge-m3-lite"
    FLAGEMBEDDING = "flagembedding"
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    LLAMA_CPP = "llama-cpp"

    @property
    def requirements(self) -> Path:
        """The file that pins everything it runs with."""
        return Path(__file__).parent / "requirements" / f"{self}.txt"


@dataclass(frozen=True)
class PeerSource:
    """Where environments go, each into a folder of its own, and how pip is to find torch."""

    folder: Path
    torch: tuple[str, ...] | None  # arguments of `pip install`; None takes the requirement `torch==…` as it is


def environment_of(
    name: str, requirements: Path, source: PeerSource, progress: Progress, *, pip_options: Sequence[str] = ()
) -> Path:
    """The Python of the environment of this name, which is made if it is absent or its requirements have changed.

    Raises:
        PeerError: the requirements cannot be installed.
    """
    text = requirements.read_text(encoding="utf-8")
    wanted = hashlib.sha256(text.encode()).hexdigest()
    folder = (source.folder / name).absolute()
    ready, python = folder / _READY, folder / "bin" / "python"
    if not ready.is_file() or ready.read_text() != wanted:
        with progress.step(f"Installing {name} into {source.folder / name}"):
            shutil.rmtree(folder, ignore_errors=True)
            # torch alone comes first, so that nothing else picks a build of it
            first = [source.torch or (found[0],)] if (found := _TORCH.search(text)) else []
            _install(name, python, [*first, ["-r", str(requirements)]], pip_options)
        ready.write_text(wanted)
    return python


def _install(name: str, python: Path, steps: Sequence[Sequence[str]], options: Sequence[str]) -> None:
    """Make the environment, then `pip install` each step: with our own pip, mostly newer and faster than Python's."""
    has_pip = importlib.util.find_spec("pip") is not None
    venv = [sys.executable, "-m", "venv", *(["--without-pip"] if has_pip else []), str(python.parents[1])]
    pip = [sys.executable, "-m", "pip", "--python", str(python)] if has_pip else [str(python), "-m", "pip"]
    pip += ["install", "--disable-pip-version-check", "--progress-bar", "off", *options]
    for words in (venv, *([*pip, *step] for step in steps)):
        try:
            run_to_end(f"installing {name}", words, threads=1)
        except WorkerError as error:
            remedy = "a network or a mirror that has its packages is needed; --torch names another build of torch"
            raise PeerError(f"{error}; {remedy}") from error
