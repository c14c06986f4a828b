"""`m3-bench roofline`."""

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from m3_bench.cli.commands import Commands
from m3_bench.cli.exit_codes import EXIT_OK
from m3_bench.cli.shared import checked_output, checked_rounds
from m3_runtime.cli.arguments import add_integer, add_parser
from m3_runtime.cpu import default_threads
from m3_runtime.encode.options import checked_threads
from m3_runtime.errors import InputError

if TYPE_CHECKING:
    from m3_bench.documents import Ceiling

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
    parser.add_argument("--threads", type=int, default=default_threads(), help="of each engine (default: the cores)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each engine, ten products a turn (default: 3)")
    add_integer(parser, "--rows", "rows of the product, tokens in a model", default=2048)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--record", type=Path, metavar="FILE.json", help="for the planner: costs on this processor")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="whose width of model --record measures")
    parser.add_argument("--force", action="store_true", help="replace FILE")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _run(args: argparse.Namespace) -> int:
    from m3_bench import documents
    from m3_bench.roofline import measure
    from m3_runtime.io.progress import Progress

    for path in (args.output, args.record):
        if path is not None:
            checked_output(path, force=args.force)
    if (args.record is None) != (args.checkpoint is None):
        raise InputError("--record FILE and --checkpoint DIR go together: costs are of a width of model")
    progress = Progress(quiet=args.quiet)
    found = measure(checked_threads(args.threads), checked_rounds(args.rounds), progress, args.rows)
    documents.write(found.roofline, args.output)
    rows = "\n".join(
        [*map(_row, found.roofline.ceilings), f"| memory | read | – | {found.read_bytes_per_s / 1e9:.1f} GB/s |"]
    )
    sys.stdout.write(f"| precision | engine | TFLOP/s, best | median |\n|---|---|---|---|\n{rows}\n")
    if args.record is not None:
        from m3_bench.plan_costs import plan_costs, write_record

        write_record(found, plan_costs(args.checkpoint, progress), args.record)
    return EXIT_OK


def _row(ceiling: "Ceiling") -> str:
    if not ceiling.flop_per_s:
        return f"| {ceiling.precision} | {ceiling.engine} | – | {ceiling.reason} |"
    best, middle = max(ceiling.flop_per_s) / 1e12, median(ceiling.flop_per_s) / 1e12
    return f"| {ceiling.precision} | {ceiling.engine} | {best:.3f} | {middle:.3f} |"
