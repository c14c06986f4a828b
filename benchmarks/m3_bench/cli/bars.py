"""`m3-bench bars`, which is `m3-bench peers` and `run` with `--scenarios targets` now."""

import argparse

from m3_bench.cli.commands import Commands
from m3_runtime.errors import InputError

_SUCCESSORS = """\
m3-bench bars is gone. Its rows are targets now, of the same names:
  m3-bench peers CHECKPOINT BUNDLE --scenarios targets [--targets NAME,…] -o FILE     for bars BUNDLE --checkpoint …
  m3-bench run BUNDLE --scenarios targets --targets NAME,… -o FILE                    for rows without peers
  m3-bench run BUNDLE --scenarios regret --plans BUNDLE,… -o FILE                     for --plans"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("bars", description=_SUCCESSORS, prefix_chars="\0")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.set_defaults(run=_run)


def _run(_args: argparse.Namespace) -> int:
    raise InputError(_SUCCESSORS.removeprefix("m3-bench "))
