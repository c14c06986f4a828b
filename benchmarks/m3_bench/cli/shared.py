"""Flags that several commands have."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from m3_bench.scenarios import NAMES
from m3_runtime.cpu import default_threads
from m3_runtime.errors import InputError
from m3_runtime.io.output import check_no_input


def add_scenarios(parser: argparse.ArgumentParser, default: str) -> None:
    """`--scenarios` and `--rounds`."""
    parser.add_argument(
        "--scenarios",
        type=lambda words: [word.strip() for word in words.split(",") if word.strip()],
        default=[default],
        metavar="NAME|FILE,…",
        help=f"{', '.join(NAMES)}, or TOML files (default: {default}); docs/use/benchmarking.md has the format",
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each contender (default: 3)")


def checked_rounds(rounds: int) -> int:
    """A number of rounds that can be.

    Raises:
        InputError: it cannot.
    """
    if rounds < 1:
        raise InputError(f"--rounds must be at least 1, got {rounds}")
    return rounds


def checked_output(path: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse an output that is there, or whose folder is not, or that is one of the inputs, `force` or not.

    Raises:
        InputError: any of these.
    """
    check_no_input(path, inputs)
    if not path.absolute().parent.is_dir():
        raise InputError(f"the folder of {str(path)!r} does not exist; create it first")
    if path.is_dir() or (path.exists() and not force):
        raise InputError(f"{str(path)!r} exists; choose another file, or pass --force to replace it")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """What `run` and `peers` have in common."""
    parser.add_argument("--reference", type=Path, metavar="FILE", help="of m3-bench record: its texts are encoded")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="other texts (default: 97 in 26 languages)")
    add_scenarios(parser, "standard")
    parser.add_argument("--threads", type=int, default=default_threads(), help="of each (default: the cores)")
    parser.add_argument("--cpus", metavar="N,…", help="logical CPUs to run on (default: the first as many as threads)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json", help="gone on with if there")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def checked_cpus(words: str | None, threads: int) -> tuple[int, ...]:
    """Logical CPUs that this process may use.

    Raises:
        InputError: they are not numbers, or not of this machine.
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if words is None:
        return tuple(allowed[:threads])
    parts = [word.strip() for word in words.split(",")]
    if not all(part.isdecimal() for part in parts) or not {int(part) for part in parts} <= set(allowed):
        raise InputError(f"--cpus {words}: expected some of {','.join(map(str, allowed))}")
    return tuple(sorted({int(part) for part in parts}))
