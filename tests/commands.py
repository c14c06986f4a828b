"""Commands run in this process through their `main`. Tests of what only a process shows start one themselves."""

import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

Main = Callable[[list[str]], int]


@dataclass(frozen=True)
class Done:
    """A finished command, named as `subprocess` names it."""

    returncode: int
    stdout: str
    stderr: str


def run_main(main: Main, *arguments: object, text: str = "") -> Done:
    """Run a command with `text` on standard input; what argparse does with a wrong command line included."""
    standard_input = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
    with _stream() as stdout, _stream() as stderr:
        with (
            redirect_stdout(stdout),
            redirect_stderr(stderr),
            patch.object(sys, "stdin", standard_input),
            warnings.catch_warnings(),
        ):
            code = _exit_code(main, [str(argument) for argument in arguments])
        return Done(code, _content(stdout), _content(stderr))


def _exit_code(main: Main, arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as end:  # argparse's own way out
        return int(end.code or 0)


@contextmanager
def _stream() -> Iterator[io.TextIOWrapper]:
    """A stream with a buffer and a file number, as those of a process have them."""
    with tempfile.TemporaryFile() as file:
        stream = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        yield stream


def _content(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()
