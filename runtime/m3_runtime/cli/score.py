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
    add_integer,
    add_max_length,
    add_on_truncate,
    add_parser,
    in_words,
    number,
    open_model,
    placed,
    refuse_given,
)
from m3_runtime.cli.interrupt import interruptible
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError
from m3_runtime.io.formats import SourceFormat
from m3_runtime.io.output import STDOUT, json_line, opened_output
from m3_runtime.io.readers import read_pairs
from m3_runtime.io.rows import PairRow
from m3_runtime.pairs import LEAST_PAIR_TOKENS, check_not_empty
from m3_runtime.reranker import M3Reranker, RerankScores
from m3_runtime.scoring import FusionWeights

_STEP_PAIRS = 1024

_DESCRIPTION = """\
Score pairs of a query and a passage: by an encoder's heads, each and combined, or by a reranker. Writes a line of JSON
for each pair.
"""

_EPILOG = """\
examples:
  m3-runtime score my-bundle "What is BGE M3?" "BGE M3 is an embedding model."
  m3-runtime score my-bundle --pairs pairs.tsv -o scores.jsonl
  m3-runtime score my-bundle --pairs pairs.jsonl --weights 0.4 0.2 0.4

pairs: lines of query, tab, passage (.txt, .tsv), in a .tsv also behind a header with the columns query and passage; or
JSONL with "query" and "passage".
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
        type=number(),
        nargs=3,
        metavar=("DENSE", "SPARSE", "COLBERT"),
        help="weight of each head in the combined scores (default: 1 1 1)",
    )
    text = "tokens per query, both special tokens included (default: 512); of a reranker, without special tokens "
    add_integer(command, "--max-query-length", f"{text}(default: three quarters of --max-length)", least=3)
    add_max_length(command, "--max-passage-length")
    text = "of a reranker: tokens per pair, its four special tokens included, where the passage is cut (default: 512)"
    add_integer(command, "--max-length", text, least=LEAST_PAIR_TOKENS)
    command.add_argument("--normalize", action="store_true", help="of a reranker: scores from 0 to 1, by the sigmoid")
    command.add_argument("-o", "--output", default=STDOUT, metavar="OUT", help="default: standard output")
    add_on_truncate(command)
    add_batching(command)


def run(arguments: argparse.Namespace) -> None:
    """Score what the arguments name."""
    pairs = _pairs(arguments)
    count = truncated = respelled = 0
    inputs = [arguments.bundle, *([] if arguments.pairs is None else [arguments.pairs])]
    with interruptible(partial(open_model, arguments)) as model, opened_output(arguments.output, inputs) as file:
        is_reranker = isinstance(model, M3Reranker)
        _check_kind(arguments, is_reranker=is_reranker)
        while step := list(islice(pairs, _STEP_PAIRS)):
            with placed(step, count):
                rows, cut, lacking = _scored(model, step, arguments)
            count += len(step)
            truncated, respelled = truncated + cut, respelled + lacking
            for row in rows:
                file.write(json_line(row))
        if not count:
            raise InputError(f"{in_words(arguments.pairs)} has no pairs to score")
    if truncated:
        counted = f"{count} pairs" if is_reranker else f"{2 * count} texts"
        limits = f"--max-query-length or {'--max-length' if is_reranker else '--max-passage-length'}"
        sys.stderr.write(f"m3-runtime: {truncated} of {counted} were longer than {limits} and were cut\n")
    if respelled:
        sys.stderr.write(f"m3-runtime: {respelled} of {2 * count} texts have pieces that the bundle dropped\n")


def _check_kind(arguments: argparse.Namespace, *, is_reranker: bool) -> None:
    """Refuse options of the other kind of bundle."""
    others = ("weights", "max_passage_length") if is_reranker else ("max_length", "normalize")
    needed = "an encoder's bundle" if is_reranker else "a reranker's bundle"
    for name in others:
        if getattr(arguments, name):
            raise InputError(f"--{name.replace('_', '-')} is for {needed}, which this is not; leave it out")
    if not is_reranker:
        FusionWeights.from_sequence(arguments.weights)  # what is wrong with them is said before anything is scored


def _scored(
    model: M3Encoder | M3Reranker, step: list[PairRow], arguments: argparse.Namespace
) -> tuple[list[dict[str, float]], int, int]:
    """A line of scores for each pair: of an encoder's heads, each and combined, or a reranker's one.

    And how many texts, or a reranker's pairs, were cut; and how many texts have a piece that the bundle dropped.
    """
    is_reranker = isinstance(model, M3Reranker)
    for pair in step if is_reranker else ():
        check_not_empty(pair.query, f"{pair.place}: the query")
        check_not_empty(pair.passage, f"{pair.place}: the passage")
    scores = model.score_pairs(
        [(pair.query, pair.passage) for pair in step],
        arguments.batch_size,
        arguments.max_query_length,
        arguments.max_length if is_reranker else arguments.max_passage_length,
        token_budget=arguments.token_budget,
        on_truncate=arguments.on_truncate,
    )
    if isinstance(scores, RerankScores):
        return [{"score": value} for value in scores.values(normalize=arguments.normalize)], scores.truncated, 0
    combined = scores.combined(FusionWeights.from_sequence(arguments.weights))
    rows = [dict(zip(combined, row, strict=True)) for row in zip(*combined.values(), strict=True)]
    return rows, scores.truncated, scores.out_of_vocabulary


def _pairs(arguments: argparse.Namespace) -> Iterator[PairRow]:
    has_texts = arguments.query is not None and arguments.passage is not None
    if (arguments.pairs is not None) == has_texts or (arguments.query is not None and not has_texts):
        arguments.command_parser.error("give QUERY and PASSAGE, or --pairs FILE")
    if has_texts:
        refuse_given(arguments, arguments.command_parser, ["input_format"], "is for --pairs FILE; leave it out")
        return iter([PairRow(arguments.query, arguments.passage, "command line")])
    return read_pairs(arguments.pairs, arguments.input_format)
