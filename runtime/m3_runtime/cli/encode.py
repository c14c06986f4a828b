"""m3-runtime encode: texts to vectors."""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

from m3_runtime.cli.arguments import (
    add_batching,
    add_bundle,
    add_colbert,
    add_columns,
    add_heads,
    add_input_format,
    add_max_length,
    add_on_truncate,
    add_parser,
    checked_columns,
    colbert_settings,
    in_words,
    opening,
    placed,
)
from m3_runtime.cli.interrupt import interruptible
from m3_runtime.encode.colbert import ColbertDtype
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError
from m3_runtime.io.formats import STDIN, SourceFormat
from m3_runtime.io.output import STDOUT, jsonl_lines, npz_arrays, opened_output, write_npz
from m3_runtime.io.progress import Progress
from m3_runtime.io.readers import known_format, read_texts
from m3_runtime.io.rows import Row

# Texts per call of `encode`: enough to sort by length, few enough that results appear and memory stays small.
_STEP_TEXTS = 1024

_DESCRIPTION = """\
Encode texts with the heads of your choice.

Input is a text file (every line is a text), JSONL or JSON (strings, or objects with "text" and optionally "id"), CSV or
TSV with a header, or Parquet (extra bulk); the name's ending says which, another is refused unless --input-format says
it, and .gz, .bz2, .xz, .zst and .lz4 are unpacked. Without FILE, or with "-", standard input is read, as lines unless
--input-format says otherwise.
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

--colbert-dtype int8, int4 and binary: colbert_vecs are the values of PackedRows, and colbert_scales a float for each
row. npz also has colbert_dtype and colbert_dim, and with --colbert-dim colbert_space_id, the space of such rows.
"""


def add_command(commands: Any) -> None:
    """Add `encode` to the command line."""
    command = add_parser(commands, "encode", run, summary="texts to vectors", description=_DESCRIPTION, epilog=_EPILOG)
    add_bundle(command)
    command.add_argument("file", metavar="FILE", nargs="?", default=STDIN, help="texts; - is standard input")
    add_heads(command)
    add_input_format(command, list(SourceFormat))
    add_columns(command)
    command.add_argument(
        "--format",
        choices=("jsonl", "npz"),
        default="jsonl",
        help="jsonl is written as it is computed, npz is held in memory until the end (default: %(default)s)",
    )
    text = "default: standard output; npz needs a file"
    command.add_argument("-o", "--output", default=STDOUT, metavar="OUT", help=text)
    add_max_length(command)
    add_on_truncate(command)
    add_colbert(command, ColbertDtype.FLOAT32)
    text = "report progress on standard error even if it is no terminal"
    command.add_argument("--progress", action="store_true", help=text)
    add_batching(command)


def run(arguments: argparse.Namespace) -> None:
    """Encode what the arguments name."""
    if arguments.format == "npz" and arguments.output == STDOUT:
        arguments.command_parser.error("--format npz needs -o FILE")
    colbert_settings(arguments, ColbertDtype.FLOAT32)
    source_format = known_format(arguments.file, arguments.input_format)  # before the model is loaded
    checked_columns(arguments, [source_format])
    ids: list[str] = []
    parts: list[Encoding] = []
    texts = truncated = respelled = 0
    inputs = (arguments.file, arguments.bundle)
    open_encoder = partial(M3Encoder.open, arguments.bundle, **opening(arguments))
    with interruptible(open_encoder) as encoder, opened_output(arguments.output, inputs) as file:
        for rows, encoding in _encoded(encoder, source_format, arguments):
            texts, truncated = texts + len(rows), truncated + encoding.truncated
            respelled += encoding.out_of_vocabulary
            if arguments.format == "jsonl":
                file.writelines(jsonl_lines([row.id for row in rows], encoding))
            else:
                ids += [row.id for row in rows]
                parts.append(encoding)
        if not texts:
            raise InputError(f"{in_words(arguments.file)} has no texts to encode")
        if arguments.format == "npz":
            dim = arguments.colbert_dim
            write_npz(file, npz_arrays(ids, parts, "" if dim is None else encoder.colbert_space_id(dim)))
    if truncated:
        sys.stderr.write(f"m3-runtime: {truncated} of {texts} texts were longer than --max-length and were cut\n")
    if respelled:
        sys.stderr.write(f"m3-runtime: {respelled} of {texts} texts have pieces that the bundle dropped\n")


def _encoded(
    encoder: M3Encoder, source_format: SourceFormat, arguments: argparse.Namespace
) -> Iterator[tuple[list[Row], Encoding]]:
    rows = read_texts(arguments.file, source_format, checked_columns(arguments, [source_format]))
    texts = 0
    with Progress(quiet=not (arguments.progress or sys.stderr.isatty())).meter() as meter:
        while step := list(islice(rows, _STEP_TEXTS)):
            with placed(step, texts):
                encoding = encoder.encode_heads(
                    [row.text for row in step],
                    arguments.heads,
                    batch_size=arguments.batch_size,
                    max_length=arguments.max_length,
                    token_budget=arguments.token_budget,
                    on_truncate=arguments.on_truncate,
                    **colbert_settings(arguments, ColbertDtype.FLOAT32),
                )
            texts += len(step)
            meter.advance(len(step), f"{texts} texts, {meter.per_s(texts):.0f} texts/s")
            yield step, encoding
