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
    """Somebody else's runtime."""

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
    """Where environments go, and how pip is to find torch.

    Attributes:
        folder: each peer gets a folder of its name in it.
        torch: pip's words for a requirement `torch==…`, an index for instance; None takes the requirement as it is.
    """

    folder: Path
    torch: tuple[str, ...] | None


def environment_of(
    name: str, requirements: Path, source: PeerSource, progress: Progress, *, pip_options: Sequence[str] = ()
) -> Path:
    """The Python of an environment, which is made if it is not there or its requirements have changed.

    Args:
        name: of its folder in `source.folder`.
        requirements: a file that pins everything.
        source: where environments go, and how pip is to find torch.
        progress: told that something is installed.
        pip_options: for `pip install`.

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
            torch = _torch_words(text, source)
            steps = [list(torch)] if torch is not None else []
            _install(name, python, [*steps, ["-r", str(requirements)]], pip_options)
        ready.write_text(wanted)
    return python


def requirement_of(peer: Peer, package: str) -> str:
    """A peer's pinned requirement of a package, "llama_cpp_python==0.3.36" for instance.

    Raises:
        PeerError: it pins none.
    """
    lines = peer.requirements.read_text(encoding="utf-8").splitlines()
    found = next((line for line in lines if line.startswith(f"{package}==")), None)
    if found is None:
        raise PeerError(f"the requirements of {peer} do not pin {package}")
    return found


def _torch_words(text: str, source: PeerSource) -> tuple[str, ...] | None:
    """What pip is told first: torch alone, so that nothing else picks a build of it."""
    found = _TORCH.search(text)
    return None if found is None else source.torch or (found[0],)


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
