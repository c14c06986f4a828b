"""Options from the environment: `M3_PORT=8080` stands for `--port 8080`, as containers are configured.

The names come from the parser itself, so no option can be forgotten: `M3_` and the option's long name, or a
positional's own. A flag on the command line wins, and then its variable is not read. What repeats is separated by
commas.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

PREFIX = "M3_"

_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
_OF_A_SERVICE = "; Kubernetes sets it for a Service of that name: set enableServiceLinks: false in the pod"
"""Pods get M3_PORT=tcp://… where the namespace has a Service that is named m3."""


class CommandParser(argparse.ArgumentParser):
    """A command's parser; one that `reads_environment` takes from there what the command line does not give."""

    reads_environment = False

    def take_environment(self) -> None:
        """Read every argument from the environment too, and say so in the help. Called once, after all are added."""
        self.reads_environment = True
        for variable, action in variables(self).items():
            # Written out now: a default that a variable replaces is not there any more when the help is shown.
            shown = (action.help or "") % {**vars(action), "prog": self.prog}
            action.help = f"{shown} [{variable}]".lstrip().replace("%", "%%")

    def parse_known_args(  # type: ignore[override]  # argparse has three overloads of it
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """See `argparse.ArgumentParser.parse_known_args`."""
        known = variables(self) if self.reads_environment else {}
        present = {name: known[name] for name in sorted(known.keys() & os.environ.keys())}
        for action in present.values():
            _need_not_be_given(action)
        positionals = [one for one in self._actions if not one.option_strings]
        optional = {one: one.default for one in positionals if one.nargs == "?" and one.type is None}
        for action in optional:
            action.default = argparse.SUPPRESS  # what is given may be the default: "-", for instance
        try:
            found, rest = super().parse_known_args(args, namespace)
        finally:
            for action, default in optional.items():
                action.default = default
        rest = _placed(found, rest, optional)
        given = set(vars(found))
        taken: dict[str, tuple[str, Any]] = {}
        for variable, action in present.items():
            if action.dest in given:
                continue
            try:
                value = _value(action, os.environ[variable])
            except ValueError as error:
                self.error(f"the environment variable {variable}: {error}")
            other, same = taken.setdefault(action.dest, (variable, value))
            if same != value:
                self.error(f"the environment variables {other} and {variable} disagree; unset one of them")
            setattr(found, action.dest, value)
        return found, rest


def variables(command: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Every argument of a command by its variable's name; an option with two long names has two variables."""
    found = {}
    for action in command._actions:
        if isinstance(action, argparse._HelpAction | argparse._VersionAction):
            continue
        names = [name for name in action.option_strings if name.startswith("--")] or [action.dest]
        if isinstance(action, argparse.BooleanOptionalAction):
            names = names[:1]  # --no-NAME is NAME=false
        for name in names:
            found[PREFIX + name.lstrip("-").replace("-", "_").upper()] = action
    return found


def warn_of_unknown_variables(known: Sequence[str], environment: Mapping[str, str]) -> None:
    """Name variables that only look like ours, with the nearest that is: a misspelt limit must not go unnoticed."""
    for name in sorted(name for name in environment if name.startswith(PREFIX) and name not in known):
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        sys.stderr.write(f"m3-runtime: warning: no option reads the environment variable {name}{hint}\n")


def _placed(found: argparse.Namespace, rest: list[str], optional: Mapping[argparse.Action, Any]) -> list[str]:
    """Give positionals that may be left out the words that came after options, or else their defaults.

    argparse takes such positionals for left out.
    """
    is_foreign = any(word.startswith("-") and word != "-" for word in rest)  # an option, and perhaps its value
    for action, default in optional.items():
        if action.dest not in found and rest and not is_foreign:
            setattr(found, action.dest, rest.pop(0))
        elif action.dest not in found and default is not argparse.SUPPRESS:
            setattr(found, action.dest, default)
    return rest


def _need_not_be_given(action: argparse.Action) -> None:
    """Let an argument be absent from the command line, and from what parsing gives if it is."""
    action.default = argparse.SUPPRESS
    action.required = False
    if not action.option_strings:
        action.nargs = "*" if action.nargs == "+" else "?"


def _value(action: argparse.Action, text: str) -> Any:
    """A variable's text, converted as the command line would.

    Raises:
        ValueError: it cannot be; the message does not show the text where the option's type does not: it may be a key.
    """
    if not text:
        raise ValueError("it is empty; give it a value or unset it")
    if action.nargs == 0:
        return _switched(action, text)
    if action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction | argparse._ExtendAction):
        return [_converted(action, part.strip()) for part in text.split(",")]
    return _converted(action, text)


def _converted(action: argparse.Action, text: str) -> Any:
    kind = action.type if callable(action.type) else str
    hint = _OF_A_SERVICE if text.startswith("tcp://") else ""
    try:
        value = kind(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{error}{hint}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"invalid {getattr(kind, '__name__', 'value')}: {text!r}{hint}") from error
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"expected one of {', '.join(map(str, action.choices))}, got {text!r}")
    return value


def _switched(action: argparse.Action, text: str) -> bool:
    value = _WORDS.get(text.lower())
    if value is None:
        raise ValueError(f"expected true or false (or {', '.join(_WORDS)}), got {text!r}")
    return value if action.const is not False else not value
