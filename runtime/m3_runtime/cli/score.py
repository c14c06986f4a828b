"""m3-runtime score: how well queries and passages match."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
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
from m3_runtime.reranker import M3Reranker
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
        score = _by_pairs(model, arguments) if isinstance(model, M3Reranker) else _by_heads(model, arguments)
        while step := list(islice(pairs, _STEP_PAIRS)):
            with placed(step, count):
                rows, cut, lacking = score(step)
            count += len(step)
            truncated, respelled = truncated + cut, respelled + lacking
            for row in rows:
                file.write(json_line(row))
        if not count:
            raise InputError(f"{in_words(arguments.pairs)} has no pairs to score")
    if truncated:
        is_reranker = isinstance(model, M3Reranker)
        counted = f"{count} pairs" if is_reranker else f"{2 * count} texts"
        limits = f"--max-query-length or {'--max-length' if is_reranker else '--max-passage-length'}"
        sys.stderr.write(f"m3-runtime: {truncated} of {counted} were longer than {limits} and were cut\n")
    if respelled:
        sys.stderr.write(f"m3-runtime: {respelled} of {2 * count} texts have pieces that the bundle dropped\n")


_Scores = Callable[[list[PairRow]], tuple[list[dict[str, float]], int, int]]
"""A line of scores for each of some pairs; how many of their texts, or of the pairs, were cut; and how many of their
texts have a piece that the bundle dropped."""


def _by_heads(encoder: M3Encoder, arguments: argparse.Namespace) -> _Scores:
    """An encoder's scores, of every head and combined.

    Raises:
        InputError: an argument is for a reranker.
    """
    _refuse(arguments, ("max_length", "normalize"), "a reranker's bundle")
    weights = FusionWeights.from_sequence(arguments.weights)

    def score(step: list[PairRow]) -> tuple[list[dict[str, float]], int, int]:
        scores = encoder.score_pairs(
            [(pair.query, pair.passage) for pair in step],
            arguments.batch_size,
            arguments.max_query_length,
            arguments.max_passage_length,
            token_budget=arguments.token_budget,
            on_truncate=arguments.on_truncate,
        )
        combined = scores.combined(weights)
        rows = [dict(zip(combined, row, strict=True)) for row in zip(*combined.values(), strict=True)]
        return rows, scores.truncated, scores.out_of_vocabulary

    return score


def _by_pairs(reranker: M3Reranker, arguments: argparse.Namespace) -> _Scores:
    """A reranker's one score.

    Raises:
        InputError: an argument is for an encoder.
    """
    _refuse(arguments, ("weights", "max_passage_length"), "an encoder's bundle")

    def score(step: list[PairRow]) -> tuple[list[dict[str, float]], int, int]:
        for pair in step:
            check_not_empty(pair.query, f"{pair.place}: the query")
            check_not_empty(pair.passage, f"{pair.place}: the passage")
        scores = reranker.score_pairs(
            [(pair.query, pair.passage) for pair in step],
            arguments.batch_size,
            arguments.max_query_length,
            arguments.max_length,
            token_budget=arguments.token_budget,
            on_truncate=arguments.on_truncate,
        )
        return [{"score": value} for value in scores.values(normalize=arguments.normalize)], scores.truncated, 0

    return score


def _refuse(arguments: argparse.Namespace, names: Sequence[str], needed: str) -> None:
    for name in names:
        if getattr(arguments, name):
            raise InputError(f"--{name.replace('_', '-')} is for {needed}, which this is not; leave it out")


def _pairs(arguments: argparse.Namespace) -> Iterator[PairRow]:
    has_texts = arguments.query is not None and arguments.passage is not None
    if (arguments.pairs is not None) == has_texts or (arguments.query is not None and not has_texts):
        arguments.command_parser.error("give QUERY and PASSAGE, or --pairs FILE")
    if has_texts:
        refuse_given(arguments, arguments.command_parser, ["input_format"], "is for --pairs FILE; leave it out")
        return iter([PairRow(arguments.query, arguments.passage, "command line")])
    return read_pairs(arguments.pairs, arguments.input_format)
