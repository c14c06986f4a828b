"""`m3-bench roofline`."""

import argparse
import sys
from pathlib import Path

from m3_bench.cli.arguments import Commands, add_output, checked_output
from m3_runtime.cli.arguments import add_integer, add_parser, add_threads
from m3_runtime.cpu import default_threads
from m3_runtime.errors import InputError

_DESCRIPTION = """\
Measure what this machine's multipliers can do: one matrix product (M 2048, K 1024, N 4096) in fp32, bf16 and int8, by
each engine, in turns. A product whose numbers are wrong (int8 that saturates) is no ceiling, and the table says so.
Reports give each variant's share of the highest ceiling of its precision. --record also times every precision of every
kind of projection, in models of a checkpoint's first layers, and writes what the planner reads for a processor that is
not at hand (m3-export --target), with this machine's ceilings and how fast it reads memory."""

_EPILOG = """\
examples:
  m3-bench roofline -o roofline.json
  m3-bench roofline -o roofline.json --record zen4.json --checkpoint out/ckpt-large"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    summary = "this machine's fp32, bf16 and int8 ceilings"
    parser = add_parser(commands, "roofline", _run, summary=summary, description=_DESCRIPTION, epilog=_EPILOG)
    add_threads(parser, "of each engine", default=default_threads())
    add_integer(parser, "--rounds", "turns of each engine, ten products a turn", default=3)
    add_integer(parser, "--rows", "rows of the product, tokens in a model", default=2048)
    add_output(parser, "json", is_required=True)
    parser.add_argument("--record", type=Path, metavar="FILE.json", help="for the planner: costs on this processor")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="whose width of model --record measures")


def _run(args: argparse.Namespace) -> int:
    from m3_bench import documents
    from m3_bench.report.page import printed
    from m3_bench.report.tables import ceilings_table
    from m3_bench.roofline import measure
    from m3_runtime.io.progress import Progress

    for path in (args.output, args.record):
        checked_output(path, force=args.force, inputs=[args.checkpoint] if args.checkpoint else [])
    if (args.record is None) != (args.checkpoint is None):
        raise InputError("--record FILE and --checkpoint DIR go together: costs are of a width of model")
    progress = Progress(quiet=args.quiet)
    found = measure(args.threads, args.rounds, progress, args.rows)
    documents.write(found.roofline, args.output)
    sys.stdout.write(
        f"{printed([ceilings_table(found.roofline)])}\n* memory is read at {found.read_bytes_per_s / 1e9:.1f} GB/s\n"
    )
    if args.record is not None:
        from m3_bench.plan_costs import plan_costs
        from m3_export.plan.costs import write_costs

        write_costs(args.record, plan_costs(args.checkpoint, progress), found.facts())
    return 0
