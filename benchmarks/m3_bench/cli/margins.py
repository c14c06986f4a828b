"""`m3-bench margins`."""

import argparse
from pathlib import Path

from m3_bench.cli.commands import Commands
from m3_bench.cli.retrieval import add_how, add_output, finish, hybrids_in, names_in, published
from m3_bench.cli.shared import checked_output
from m3_bench.figures import Place
from m3_bench.report.page import printed
from m3_bench.report.searches import INTERVALS, MARGINS, margins_notes, margins_table
from m3_bench.retrieval.bundles import choose_bundles
from m3_bench.retrieval.finetune import read_finetune
from m3_bench.retrieval.margins import measure_margins
from m3_runtime.cli.arguments import integer
from m3_runtime.io.progress import Progress

_DESCRIPTION = """\
Score the lines of a fine-tuning file with every variant of bundles: how far do positives score above negatives, before
and after fine-tuning, in FP32 and in INT8? By each head, and by heads added up with the published weights (divided by
the weights' sum, as FlagEmbedding's compute_score does).

Every line is checked first. A bad one is left out, named with its number and reason on stderr and in the result:
a missing key, a `pos` or `neg` that is no list or an empty one, an item that is no text, scores that do not fit.
`"neg": [""]` is good and means no negatives."""

_EPILOG = """\
a line:
  {{"query": "deepest lake", "pos": ["Lake Baikal is …"], "neg": ["Lake Ladoga is …", "The Rhine …"]}}

published weights, which are measured unless --weights is given:
{published}

The first bundle is what others are compared with; bundles are called by their folders' names. Margins of two models lie
on two scales (fine-tuning spreads scores out), so compare their pair accuracies first.

examples:
  m3-bench margins benchmarks/data/finetune_sample.jsonl out/mini-m3
  m3-bench margins held_out.jsonl out/before out/after -o margins.json
  m3-bench margins held_out.jsonl out/after --variants onnx-fp32,onnx-int8 --weights 1,0.3,1

exit codes: 0 measured, bad lines or not; 1 no line or no bundle can be used; 2 usage"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    command = commands.add_parser(
        "margins",
        help="how far positives score above negatives on fine-tuning lines",
        description=_DESCRIPTION,
        epilog=_EPILOG.format(published=published()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("source", type=Path, metavar="TRAIN.jsonl", help="fine-tuning lines, plain or .gz")
    command.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE", help="bundles' folders")
    group = command.add_argument_group("how")
    group.add_argument("--limit-queries", type=integer(1), metavar="N", help="the first N good lines")
    add_how(group)
    add_output(command, "every score")
    command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    hybrids = hybrids_in(args.weights)
    if args.output is not None:
        checked_output(args.output, force=args.force)
    file, choice = read_finetune(args.source), choose_bundles(args.bundles, names_in(args.variants))
    document = measure_margins(
        file,
        choice,
        hybrids,
        Progress(quiet=args.quiet),
        queries=args.limit_queries,
        max_length=args.max_length,
        threads=args.threads,
    )
    found = margins_table(document, Place(""))
    return finish(args, document, f"{printed([found])}\n\n{MARGINS} {INTERVALS}\n", margins_notes(document))
