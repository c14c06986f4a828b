"""The peers' environments: each a venv of its own, made of its pinned requirements when it is first needed."""

import hashlib
import re
import shutil
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from m3_bench.errors import PeerError, WorkerError
from m3_bench.worker_process import run_to_end
from m3_export.progress import Progress

REQUIREMENTS = Path(__file__).parents[1] / "peers"
_READY = "ready"
_TORCH = re.compile(r"^torch==\S+$", re.MULTILINE)


class Peer(StrEnum):
    """Somebody else's runtime; its requirements are in `NAME.txt`."""

    LITE = "bge-m3-lite"
    FLAGEMBEDDING = "flagembedding"
    SENTENCE_TRANSFORMERS = "sentence-transformers"


@dataclass(frozen=True)
class PeerSource:
    """Where environments go, and how pip is to find torch.

    Attributes:
        folder: each peer gets a folder of its name in it.
        torch: pip's words for a requirement `torch==…`, an index for instance; None takes the requirement as it is.
    """

    folder: Path
    torch: tuple[str, ...] | None


def ensure_environment(peer: Peer, source: PeerSource, progress: Progress) -> Path:
    """The Python of a peer's environment, which is made if it is not there or its requirements have changed.

    Raises:
        PeerError: there are no requirements, or they cannot be installed.
    """
    requirements = _requirements(peer)
    text = requirements.read_text(encoding="utf-8")
    wanted = hashlib.sha256(text.encode()).hexdigest()
    folder = (source.folder / peer).absolute()
    ready, python = folder / _READY, folder / "bin" / "python"
    if not ready.is_file() or ready.read_text() != wanted:
        with progress.step(f"Installing {peer} into {source.folder / peer}"):
            shutil.rmtree(folder, ignore_errors=True)
            _install(peer, python, requirements, _torch_words(text, source))
        ready.write_text(wanted)
    return python


def _requirements(peer: Peer) -> Path:
    path = REQUIREMENTS / f"{peer}.txt"
    if not path.is_file():
        raise PeerError(f"no requirements of {peer} at {str(path)!r}; run the benchmark from the source tree")
    return path


def _torch_words(text: str, source: PeerSource) -> tuple[str, ...] | None:
    """What pip is told first: torch alone, so that nothing else picks a build of it."""
    found = _TORCH.search(text)
    return None if found is None else source.torch or (found[0],)


def _install(peer: Peer, python: Path, requirements: Path, torch: tuple[str, ...] | None) -> None:
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    steps = [[sys.executable, "-m", "venv", str(python.parents[1])]]
    steps += [[*pip, *torch]] if torch is not None else []
    steps += [[*pip, "-r", str(requirements)]]
    for words in steps:
        try:
            run_to_end(f"installing {peer}", words, threads=1)
        except WorkerError as error:
            remedy = "a network or a mirror that has its packages is needed; --torch names another build of torch"
            raise PeerError(f"{error}; {remedy}") from error
