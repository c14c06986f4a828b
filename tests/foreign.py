"""The environment of libraries that do not fit into ours; CI makes it with this file while types are checked."""

import os
from pathlib import Path

from filelock import FileLock

from m3_bench.peers.environments import PeerSource, environment_of
from m3_runtime.io.progress import Progress

ROOT = Path(__file__).parents[1]
PINS = Path(__file__).parent / "environment" / "pins.txt"


def foreign_python() -> Path:
    """Its Python. It is made once, and again when its pins change. TORCH names a build of torch, as for make."""
    torch = os.environ.get("TORCH")
    source = PeerSource(ROOT / "out", tuple(torch.split()) if torch else None)
    source.folder.mkdir(exist_ok=True)
    with FileLock(source.folder / "foreign.lock"):
        return environment_of("foreign", PINS, source, Progress(quiet=True), pip_options=("--quiet", "--no-compile"))


if __name__ == "__main__":
    foreign_python()
