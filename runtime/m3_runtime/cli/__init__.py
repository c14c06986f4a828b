"""The command m3-runtime."""

import argparse
import os
from collections.abc import Sequence

from m3_runtime.cli import bulk, encode, info, score, serve
from m3_runtime.cli.ending import run_command
from m3_runtime.cli.environment import CommandParser, variables, warn_of_unknown_variables
from m3_runtime.errors import FileFormatError, InputError
from m3_runtime.version import __version__

_DESCRIPTION = "BGE-M3's dense, sparse and ColBERT vectors on CPU, from a bundle that m3-export made."

_EPILOG = """\
examples:
  m3-runtime info my-bundle
  m3-runtime encode my-bundle texts.txt -o vectors.jsonl
  m3-runtime bulk my-bundle corpus.parquet -o vectors-of-corpus
  m3-runtime score my-bundle "What is BGE M3?" "BGE M3 is an embedding model."

exit codes: 0 done, 1 failed, 2 wrong usage, a wrong input or bundle or a missing extra, 4 done but too many rows were
  rejected or there was not one good row (bulk), 130 interrupted
environment: serve and bulk read every option from a variable too, --port from M3_PORT; their help names them
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
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=CommandParser)
    for command in (encode, bulk, score, serve, info):
        command.add_command(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    top = parser()
    arguments, unknown = top.parse_known_args(argv)
    if unknown:
        arguments.command_parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if arguments.command_parser.reads_environment:
        # of all commands that read any: one container may be given the variables of several
        reading = [command for command in commands_of(top).values() if command.reads_environment]
        warn_of_unknown_variables([name for command in reading for name in variables(command)], os.environ)
    remedy = "encode less at a time: a smaller --token-budget (of serve --batch-tokens) or --batch-size"
    return run_command("m3-runtime", lambda: _run(arguments), memory_remedy=remedy)


def _run(arguments: argparse.Namespace) -> int | None:
    """Run a command; to what is wrong with a file's format it adds its own options that help."""
    try:
        code: int | None = arguments.run(arguments)
    except FileFormatError as error:
        given = {name: value for name, value in error.arguments.items() if name in arguments}
        options = [f"--{name.replace('_', '-')} {value}" for name, value in given.items()]
        raise InputError(f"{error}; or pass {', '.join(options)}" if options else str(error)) from error
    return code


def commands_of(top: argparse.ArgumentParser) -> dict[str, CommandParser]:
    """The commands by their names."""
    (commands,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)
