"""m3-runtime encode: texts to vectors."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head
from m3_runtime.cli.arguments import add_batching, add_bundle, add_on_truncate, integer, open_encoder
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError, TextTooLongError
from m3_runtime.io.input import InputFormat, TextRecord, read_texts
from m3_runtime.io.output import STDOUT, jsonl_lines, npz_arrays, opened_output, write_npz

# Texts per call of `encode`: enough to sort by length, few enough that results appear and memory stays small.
_STEP_TEXTS = 1024

_DESCRIPTION = """\
Encode texts with the heads of your choice.

Input is a text file (every line is a text) or JSONL (objects with "text" and, if you like, "id"); the name's
ending says which. Without FILE, or with "-", standard input is read, as lines unless --input-format says jsonl.
"""

_EPILOG = """\
examples:
  m3-runtime encode my-bundle texts.txt -o vectors.jsonl
  m3-runtime encode my-bundle docs.jsonl --heads dense,sparse,colbert --format npz -o vectors.npz
  echo "What is BGE M3?" | m3-runtime encode my-bundle --heads sparse

a line of JSONL output:
  {"id": "1", "tokens": 9, "dense_vecs": [...], "lexical_weights": {"4865": 0.0836, ...}, "colbert_vecs": [[...]]}

arrays of npz output: ids, token_counts, dense_vecs, sparse_indptr, sparse_ids, sparse_weights, colbert_indptr,
colbert_vecs; row s of a ragged array is values[indptr[s]:indptr[s + 1]].
"""


def add_command(commands: Any) -> None:
    """Add `encode` to the command line."""
    command = commands.add_parser(
        "encode",
        help="texts to vectors",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_bundle(command)
    command.add_argument("file", metavar="FILE", nargs="?", default="-", help="texts; - is standard input")
    command.add_argument(
        "--heads",
        type=_heads,
        default=(Head.DENSE,),
        metavar="LIST",
        help="comma-separated: dense, sparse, colbert (default: dense)",
    )
    command.add_argument("--input-format", type=InputFormat, choices=list(InputFormat), default=InputFormat.AUTO)
    command.add_argument(
        "--format",
        choices=("jsonl", "npz"),
        default="jsonl",
        help="jsonl is written as it is computed, npz is held in memory until the end (default: %(default)s)",
    )
    command.add_argument(
        "-o", "--output", default=STDOUT, metavar="OUT", help="default: standard output; npz needs a file"
    )
    command.add_argument(
        "--max-length",
        type=integer(3),
        metavar="N",
        help="tokens per text, both specials included (default: 512)",
    )
    add_on_truncate(command)
    command.add_argument("--colbert-dtype", choices=("float32", "float16"), default="float32", help="npz only")
    command.add_argument(
        "--progress", action="store_true", help="report on standard error even if it is not a terminal"
    )
    add_batching(command)
    command.set_defaults(run=run, command_parser=command)


def run(arguments: argparse.Namespace) -> None:
    """Encode what the arguments name."""
    if arguments.format == "npz" and arguments.output == STDOUT:
        arguments.command_parser.error("--format npz needs -o FILE")
    with open_encoder(arguments) as encoder, closing(_Progress(arguments.progress)) as progress:
        steps = _encoded(encoder, arguments, progress)
        with opened_output(arguments.output) as file:
            if arguments.format == "jsonl":
                for ids, encoding in steps:
                    file.writelines(jsonl_lines(ids, encoding))
            else:
                write_npz(file, _collected(steps))


def _encoded(
    encoder: M3Encoder, arguments: argparse.Namespace, progress: "_Progress"
) -> Iterator[tuple[list[str], Encoding]]:
    records = read_texts(arguments.file, arguments.input_format)
    while step := list(islice(records, _STEP_TEXTS)):
        encoding = _encode(encoder, step, arguments)
        progress.add(len(step), encoding.truncated)
        yield [record.id for record in step], encoding


def _encode(encoder: M3Encoder, step: Sequence[TextRecord], arguments: argparse.Namespace) -> Encoding:
    try:
        return encoder.encode(
            [record.text for record in step],
            arguments.batch_size,
            arguments.max_length,
            *(head in arguments.heads for head in Head),
            token_budget=arguments.token_budget,
            on_truncate=arguments.on_truncate,
            colbert_dtype=arguments.colbert_dtype,
        )
    except TextTooLongError as error:
        raise InputError(f"{step[error.index].where}: {error}") from error


def _collected(steps: Iterator[tuple[list[str], Encoding]]) -> dict[str, NDArray[Any]]:
    ids: list[str] = []
    parts: list[Encoding] = []
    for step_ids, encoding in steps:
        ids += step_ids
        parts.append(encoding)
    if not parts:
        raise InputError("there are no texts to encode")
    return npz_arrays(ids, parts)


def _heads(text: str) -> tuple[Head, ...]:
    try:
        return tuple(Head(name.strip()) for name in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected some of dense,sparse,colbert, got {text!r}") from error


class _Progress:
    """Counts on standard error: while running where someone looks, at the end where texts were cut."""

    def __init__(self, is_forced: bool) -> None:
        self._is_shown = is_forced or sys.stderr.isatty()
        self._is_terminal = sys.stderr.isatty()
        self._start_s = time.monotonic()
        self._texts = self._truncated = 0

    def add(self, texts: int, truncated: int) -> None:
        """Note that some more texts are done."""
        self._texts += texts
        self._truncated += truncated
        if self._is_shown:
            rate = self._texts / max(time.monotonic() - self._start_s, 1e-9)
            start, end = ("\r", "") if self._is_terminal else ("", "\n")
            sys.stderr.write(f"{start}{self._texts} texts, {rate:.0f} texts/s{end}")
            sys.stderr.flush()

    def close(self) -> None:
        """Finish the line, and say how many texts were cut."""
        if self._is_shown and self._is_terminal and self._texts:
            sys.stderr.write("\n")
        if self._truncated:
            sys.stderr.write(
                f"m3-runtime: {self._truncated} of {self._texts} texts were longer than --max-length and were cut\n"
            )
