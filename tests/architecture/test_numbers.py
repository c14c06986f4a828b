"""Every option that takes a number refuses what is none, is not finite, or is larger than anything can be."""

import argparse
from collections.abc import Iterator

import m3_bench.cli
import m3_export.cli
import m3_runtime.cli
from m3_runtime.errors import M3Error

TOPS = (m3_runtime.cli.parser(), m3_export.cli.parser(), m3_bench.cli.parser())
NO_NUMBERS = ("nan", "inf", "-inf", "1e400", "9" * 40, "-" + "9" * 40, "", "7 apples")


def arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Every argument of a command and of its subcommands, with what it is called."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from arguments(command)
        elif callable(action.type):
            yield f"{parser.prog} {'/'.join(action.option_strings) or action.dest}", action


def takes(action: argparse.Action, text: str) -> bool:
    assert callable(action.type)
    try:
        action.type(text)
    except (argparse.ArgumentTypeError, ValueError, M3Error):
        return False
    return True


def test_numbers_are_finite_and_bounded():
    every = [one for top in TOPS for one in arguments(top)]
    numeric = [(name, action) for name, action in every if not takes(action, "seven") and takes(action, "7")]
    numeric += [(name, action) for name, action in every if not takes(action, "7") and takes(action, "0.7")]
    assert len(numeric) > 50
    assert [(name, text) for name, action in numeric for text in NO_NUMBERS if takes(action, text)] == []
