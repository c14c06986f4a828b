"""m3-runtime score: how well queries and passages match."""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

from m3_runtime.cli.arguments import (
    add_batching,
    add_bundle,
    add_input_format,
    add_max_length,
    add_on_truncate,
    add_parser,
    open_encoder,
    placed,
)
from m3_runtime.cli.interrupt import interruptible
from m3_runtime.io.formats import SourceFormat
from m3_runtime.io.output import STDOUT, json_line, opened_output
from m3_runtime.io.readers import read_pairs
from m3_runtime.io.rows import PairRow
from m3_runtime.scoring import FusionWeights

_STEP_PAIRS = 1024

_DESCRIPTION = """\
Score pairs of a query and a passage with every head, and combined. Writes a line of JSON for each pair.
"""

_EPILOG = """\
examples:
  m3-runtime score my-bundle "What is BGE M3?" "BGE M3 is an embedding model."
  m3-runtime score my-bundle --pairs pairs.tsv -o scores.jsonl
  m3-runtime score my-bundle --pairs pairs.jsonl --weights 0.4 0.2 0.4

pairs: lines of query, tab, passage (.txt, .tsv); or JSONL with "query" and "passage".
"""


def add_command(commands: Any) -> None:
    """Add `score` to the command line."""
    summary = "how well queries and passages match"
    command = add_parser(commands, "score", run, summary=summary, description=_DESCRIPTION, epilog=_EPILOG)
    add_bundle(command)
    command.add_argument("query", metavar="QUERY", nargs="?")
    command.add_argument("passage", metavar="PASSAGE", nargs="?")
    command.add_argument("--pairs", metavar="FILE", help="a file of pairs; - is standard input")
    add_input_format(command, [SourceFormat.JSONL, SourceFormat.LINES])
    command.add_argument(
        "--weights",
        type=float,
        nargs=3,
        metavar=("DENSE", "SPARSE", "COLBERT"),
        help="weight of each head in the combined scores (default: 1 1 1)",
    )
    add_max_length(command, "--max-query-length")
    add_max_length(command, "--max-passage-length")
    command.add_argument("-o", "--output", default=STDOUT, metavar="OUT", help="default: standard output")
    add_on_truncate(command)
    add_batching(command)


def run(arguments: argparse.Namespace) -> None:
    """Score what the arguments name."""
    pairs = _pairs(arguments)
    weights = FusionWeights.from_sequence(arguments.weights)
    texts = truncated = respelled = 0
    inputs = [arguments.bundle, *([] if arguments.pairs is None else [arguments.pairs])]
    with interruptible(partial(open_encoder, arguments)) as encoder, opened_output(arguments.output, inputs) as file:
        while step := list(islice(pairs, _STEP_PAIRS)):
            with placed(step):
                scores = encoder.score_pairs(
                    [(pair.query, pair.passage) for pair in step],
                    arguments.batch_size,
                    arguments.max_query_length,
                    arguments.max_passage_length,
                    token_budget=arguments.token_budget,
                    on_truncate=arguments.on_truncate,
                )
            texts += 2 * len(step)
            truncated += scores.truncated
            respelled += scores.out_of_vocabulary
            combined = scores.combined(weights)
            for row in zip(*combined.values(), strict=True):
                file.write(json_line(dict(zip(combined, row, strict=True))))
    if truncated:
        sys.stderr.write(
            f"m3-runtime: {truncated} of {texts} texts were longer than --max-query-length or --max-passage-length "
            "and were cut\n"
        )
    if respelled:
        sys.stderr.write(f"m3-runtime: {respelled} of {texts} texts have pieces that the bundle dropped\n")


def _pairs(arguments: argparse.Namespace) -> Iterator[PairRow]:
    has_texts = arguments.query is not None and arguments.passage is not None
    if (arguments.pairs is not None) == has_texts or (arguments.query is not None and not has_texts):
        arguments.command_parser.error("give QUERY and PASSAGE, or --pairs FILE")
    if has_texts:
        return iter([PairRow(arguments.query, arguments.passage, "command line")])
    return read_pairs(arguments.pairs, arguments.input_format)
