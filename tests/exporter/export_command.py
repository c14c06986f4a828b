"""m3-export in this process, and what it left on the disk."""

from dataclasses import dataclass
from pathlib import Path

from commands import run_main
from m3_export.cli import main

PROBE = Path(__file__).parents[1] / "golden" / "mini_m3_probe.txt"
FEW = ("--probe-texts", PROBE)  # are measured faster
BUDGET = "dense_mean=0.9993,dense_min=0.998,colbert_p5=0.996,sparse_jaccard=0.98,degenerate_share=0.005"


@dataclass(frozen=True)
class Done:
    """A finished run of the command."""

    code: int
    stdout: str
    stderr: str
    out: Path


def export(*words: str | Path) -> Done:
    """Run m3-export; the last word is OUT."""
    done = run_main(main, *words)
    return Done(done.returncode, done.stdout, done.stderr, Path(words[-1]))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
