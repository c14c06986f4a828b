"""Flags that several commands have."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from m3_bench.scenarios import NAMES, NO_TIMES
from m3_runtime.errors import InputError
from m3_runtime.io.output import STDOUT, check_no_input
from m3_runtime.words import distinct_words

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # a text: the class takes no [] when run


def names(words: str) -> list[str]:
    """An argparse type: names between commas, none of them twice."""
    try:
        return distinct_words(words, "name")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_scenarios(parser: argparse.ArgumentParser) -> None:
    """`--scenarios`."""
    text = f"{', '.join(NAMES)}, or TOML files (default: standard); {NO_TIMES} keeps vectors without times; "
    text += "docs/use/benchmarking.md has the format"
    parser.add_argument("--scenarios", type=names, default=["standard"], metavar="NAME|FILE,…", help=text)


def add_output(parser: argparse.ArgumentParser, kind: str, *, is_required: bool = False) -> None:
    """`-o` for a file of a kind, `--force`, and `--quiet`."""
    parser.add_argument("-o", "--output", type=Path, required=is_required, metavar=f"FILE.{kind}", help="what to write")
    parser.add_argument("--force", action="store_true", help="replace it")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def checked_output(path: Path | None, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse an output that is there, or whose folder is not or takes no file, or that is an input, `force` or not.

    Raises:
        InputError: any of these.
    """
    if path is None:
        return
    if str(path) == STDOUT:
        raise InputError("-o -: what is written goes into a file; give its name")
    check_no_input(path, inputs)
    if not path.absolute().parent.is_dir():
        raise InputError(f"the folder of {str(path)!r} does not exist; create it first")
    if path.exists() and not path.is_file():
        raise InputError(f"{str(path)!r} is not a regular file and cannot be replaced; choose another name")
    if path.exists() and not force:
        raise InputError(f"{str(path)!r} exists; choose another file, or pass --force to replace it")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be written ({error.strerror}); choose another folder") from error
