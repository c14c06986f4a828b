"""Arguments that several commands share."""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.bundle.reader import Bundle, Verify
from m3_runtime.cli.environment import CommandParser
from m3_runtime.encode.batching import DEFAULT_TOKEN_BUDGET
from m3_runtime.encode.colbert import ColbertDtype
from m3_runtime.encode.options import DEFAULT_BATCH_SIZE
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines.select import AUTO
from m3_runtime.errors import InputError, NoRoomError, TextTooLongError
from m3_runtime.io.formats import STDIN, SourceFormat
from m3_runtime.io.rows import Columns, PairRow, Row
from m3_runtime.reranker import M3Reranker
from m3_runtime.tokenizer import OnTruncate
from m3_runtime.words import distinct_words

Member = TypeVar("Member", bound=StrEnum)

MOST_THREADS, MOST_SECONDS = 4096, 1e6
_MOST = 2**31 - 1  # of what has no limit of its own: what engines and operating systems count with


def add_parser(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], object],
    *,
    summary: str,
    description: str,
    epilog: str,
) -> CommandParser:
    """Add a command to what `add_subparsers` gave; `summary` is its line in the help of all commands."""
    command: CommandParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, command_parser=command)
    return command


def number(*, least: float = -_MOST, most: float = _MOST, above: float | None = None) -> Callable[[str], float]:
    """An argparse type: a finite number from `least` to `most`, or above `above`."""
    range_in_words = f"from {least:.10g} to {most:.10g}" if above is None else f"above {above:g}, at most {most:.10g}"

    def parse(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = math.nan
        if not least <= found <= most or (above is not None and found <= above):  # nan is not in any range
            raise argparse.ArgumentTypeError(f"expected a number {range_in_words}, got {text!r}")
        return found

    return parse


def integer(least: int, most: int = _MOST) -> Callable[[str], int]:
    """An argparse type: an integer from `least` to `most`."""

    def parse(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            found = least - 1
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(f"expected an integer from {least} to {most}, got {text!r}")
        return found

    return parse


def add_integer(
    group: Any, name: str, text: str, *, least: int = 1, most: int = _MOST, default: int | None = None
) -> None:
    """An option that takes an integer from `least` to `most`; its help ends with the default where there is one."""
    shown = "" if default is None else " (default: %(default)s)"
    group.add_argument(name, type=integer(least, most), default=default, metavar="N", help=text + shown)


def add_threads(group: Any, text: str, default: int | None = None) -> None:
    """`--threads`."""
    add_integer(group, "--threads", text, most=MOST_THREADS, default=default)


def add_choice(group: Any, name: str, text: str, default: Member, *, is_noted: bool = False) -> None:
    """An option that takes the value of an enum's member; None where it is not given, if that `is_noted`."""
    kind = type(default)

    def parse(value: str) -> Member:
        try:
            return kind(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected {' or '.join(kind)}, got {value!r}") from error

    value = None if is_noted else default
    group.add_argument(name, type=parse, default=value, metavar="|".join(kind), help=f"{text} (default: {default})")


def add_bundle(command: argparse.ArgumentParser) -> None:
    """The bundle, and how to open it."""
    command.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    group = command.add_argument_group("opening the bundle")
    group.add_argument("--variant", default=AUTO, help="a variant's name (default: the fastest that runs here)")
    group.add_argument("--engine", default=AUTO, choices=(AUTO, "onnxruntime", "openvino"), help="default: auto")
    add_threads(group, "threads of all runs together (default: the cores this process may use)")
    group.add_argument(
        "--streams",
        type=_streams,
        default=1,
        metavar="N|auto",
        help="batches that run at the same time and share the threads; for many cores and many texts (default: 1)",
    )
    add_verify(group)
    group.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="folder where OpenVINO keeps compiled models, without their weights, to start faster next time (default: "
        "none; onnxruntime has no cache)",
    )
    text = "use less memory and more time; the vectors are the same"
    group.add_argument("--low-memory", action="store_true", help=text)


def add_verify(group: Any) -> None:
    """How closely a bundle's files are checked."""
    text = "full checks the SHA-256 of every file, size that of small files only"
    add_choice(group, "--verify", text, Verify.SIZE)


def add_heads(group: Any) -> None:
    """Which heads to compute."""
    text = "comma-separated: dense, sparse, colbert (default: dense)"
    group.add_argument("--heads", type=_heads, default=(Head.DENSE,), metavar="LIST", help=text)


def add_colbert(group: Any, default: ColbertDtype) -> None:
    """How ColBERT rows are written; see `colbert_settings`."""
    text = "how ColBERT rows are written; int8, int4 and binary have a scale for each row"
    add_choice(group, "--colbert-dtype", text, default, is_noted=True)
    text = "pool N similar ColBERT rows into one, on average; docs/operate/bulk.md has the loss (default: 1, keep all)"
    add_integer(group, "--colbert-pool", text)
    add_integer(group, "--colbert-dim", "project ColBERT rows on N principal axes of the bundle's (default: all)")


def colbert_settings(arguments: argparse.Namespace, default: ColbertDtype) -> dict[str, Any]:
    """What `add_colbert` adds: the named arguments of `M3Encoder.encode_heads`.

    Raises:
        InputError: one is given, and no ColBERT rows are asked for.
    """
    names = ("colbert_dtype", "colbert_pool", "colbert_dim")
    refuse_without_head(arguments, Head.COLBERT, names)
    given = {name: getattr(arguments, name) for name in names}
    return {**given, "colbert_dtype": given["colbert_dtype"] or default, "colbert_pool": given["colbert_pool"] or 1}


def refuse_given(
    arguments: argparse.Namespace, parser: argparse.ArgumentParser, names: Sequence[str], reason: str
) -> None:
    """Refuse options that would have no effect: those of these names with another value than their default.

    Raises:
        InputError: there is one; the message names it and gives the reason.
    """
    for name in names:
        if getattr(arguments, name) != parser.get_default(name):
            raise InputError(f"--{name.replace('_', '-')} {reason}")


def checked_columns(arguments: argparse.Namespace, formats: Iterable[SourceFormat]) -> Columns:
    """What `add_columns` adds.

    Raises:
        InputError: columns are named, and no file of these formats has any.
    """
    if set(formats) == {SourceFormat.LINES}:
        reason = "names a column, and lines of text have none; leave it out, or say how to read them: --input-format"
        refuse_given(arguments, arguments.command_parser, ("text", "id"), reason)
    return Columns(arguments.text, arguments.id)


def refuse_without_head(arguments: argparse.Namespace, head: Head, names: Sequence[str]) -> None:
    """See that options of a head, None where not given, come with that head.

    Raises:
        InputError: `--heads` does not ask for it.
    """
    for name in names:
        if getattr(arguments, name) is not None and head not in arguments.heads:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} is of {head} vectors, which --heads does not ask for; add {head} there")


def add_max_length(group: Any, name: str = "--max-length") -> None:
    """How many tokens of a text count."""
    add_integer(group, name, "tokens per text, both special tokens included (default: 512)", least=3)


def add_input_format(group: Any, formats: Sequence[SourceFormat]) -> None:
    """How a file is read."""
    text = f"{', '.join(formats)} or auto (default: auto, by the name's ending; another ending is refused)"
    group.add_argument("--input-format", type=_source_format, choices=(None, *formats), metavar="FORMAT", help=text)


def add_columns(group: Any) -> None:
    """Which columns of a file are read."""
    text = "column of the texts; chunk.text is the field text of chunk (default: %(default)s)"
    group.add_argument("--text", default="text", metavar="NAME", help=text)
    group.add_argument("--id", metavar="NAME", help='column of the ids (default: "id" where there is one)')


def add_batching(command: argparse.ArgumentParser) -> None:
    """How much runs together."""
    group = command.add_argument_group("batching")
    add_integer(group, "--batch-size", "most texts that run together", default=DEFAULT_BATCH_SIZE)
    text = "most tokens that run together; bounds working memory"
    add_integer(group, "--token-budget", text, default=DEFAULT_TOKEN_BUDGET)


def add_on_truncate(command: argparse.ArgumentParser) -> None:
    """What becomes of texts that are too long."""
    text = "what to do with longer texts: truncate them and report how many, or fail"
    add_choice(command, "--on-truncate", text, OnTruncate.TRUNCATE)


def opening(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_bundle` adds beside the bundle: the named arguments of `M3Encoder.open`."""
    names = ("variant", "engine", "threads", "verify", "cache_dir", "low_memory", "streams")
    return {name: getattr(arguments, name) for name in names}


def open_model(arguments: argparse.Namespace) -> M3Encoder | M3Reranker:
    """Open the bundle, an encoder's or a reranker's, as the arguments say."""
    kind = M3Reranker if Bundle.open(arguments.bundle).manifest.is_reranker else M3Encoder
    return kind.open(arguments.bundle, **opening(arguments))


def in_words(file: str) -> str:
    """What messages call an input."""
    return "standard input" if file == STDIN else repr(file)


@contextmanager
def placed(rows: Sequence[Row | PairRow], start: int) -> Iterator[None]:
    """Name the place of a row whose text is too long; `start` rows came before these.

    Raises:
        InputError: one is, and that is an error.
    """
    try:
        yield
    except (TextTooLongError, NoRoomError) as error:
        raise InputError(f"{rows[error.index].place}: {error.of_part(start)}") from error


def _streams(text: str) -> int | str:
    if text == AUTO:
        return text
    try:
        return integer(1, MOST_THREADS)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; or {AUTO}") from error


def _source_format(text: str) -> SourceFormat | None:
    try:
        return None if text == AUTO else SourceFormat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected {' or '.join(SourceFormat)} or auto, got {text!r}") from error


def _heads(text: str) -> tuple[Head, ...]:
    expected = "expected some of dense,sparse,colbert"
    try:
        names = distinct_words(text, "head")
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{expected}: {error}") from error
    if not set(names) <= set(ENCODER_HEADS):
        case = ", in lower case" if {name.lower() for name in names} <= set(ENCODER_HEADS) else ""
        raise argparse.ArgumentTypeError(f"{expected}{case}, got {text!r}")
    return tuple(head for head in ENCODER_HEADS if head in names)  # in one order, so that a bulk job is recognized
