"""The command m3-runtime."""

import argparse
import os
import sys
from collections.abc import Sequence

from m3_runtime.cli import bulk, encode, info, score, serve
from m3_runtime.errors import ExtraNotInstalledError, InputError, M3Error
from m3_runtime.version import __version__

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

_DESCRIPTION = "BGE-M3's dense, sparse and ColBERT vectors on CPU, from a bundle that m3-export made."

_EPILOG = """\
examples:
  m3-runtime info my-bundle
  m3-runtime encode my-bundle texts.txt -o vectors.jsonl
  m3-runtime bulk my-bundle corpus.parquet -o vectors-of-corpus
  m3-runtime score my-bundle "What is BGE M3?" "BGE M3 is an embedding model."

exit codes: 0 done, 1 failed, 2 wrong usage, wrong input or a missing extra, 130 interrupted
m3-runtime COMMAND --help explains a command.
"""


def parser() -> argparse.ArgumentParser:
    """The command line, all commands included."""
    top = argparse.ArgumentParser(
        prog="m3-runtime",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"m3-runtime {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (encode, bulk, score, serve, info):
        command.add_command(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader is gone (`| head`). Python would complain when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (M3Error, OSError) as error:
        sys.stderr.write(f"m3-runtime: {error}\n")
        return USAGE if isinstance(error, InputError | ExtraNotInstalledError) else FAILED
    except KeyboardInterrupt:
        sys.stderr.write("m3-runtime: interrupted\n")
        return INTERRUPTED
    return OK
