"""m3-export in this process, and what it left on the disk."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from commands import run_main
from m3_export.cli import main
from made_once import made_once

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


def exported_once(folder: Path, prepare: Callable[[Path], Sequence[str | Path]]) -> Done:
    """An export that all processes of a run share: `prepare` makes what it needs, and gives all words but OUT."""

    def make(path: Path) -> None:
        path.mkdir()
        done = export(*prepare(path), path / "out" / "bundle")
        (path / "said.json").write_text(json.dumps([done.code, done.stdout, done.stderr]))

    code, stdout, stderr = json.loads((made_once(folder, make) / "said.json").read_text())
    return Done(code, stdout, stderr, folder / "out" / "bundle")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
