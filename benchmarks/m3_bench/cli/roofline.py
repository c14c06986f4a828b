"""`m3-bench roofline`."""

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from m3_bench.cli.commands import Commands
from m3_bench.cli.exit_codes import EXIT_OK
from m3_bench.cli.shared import checked_output, checked_rounds
from m3_runtime.cpu import default_threads
from m3_runtime.options import checked_threads

if TYPE_CHECKING:
    from m3_bench.documents import Ceiling

DESCRIPTION = """\
Measure what this machine's multipliers can do: one matrix product (M 2048, K 1024, N 4096) in fp32, bf16 and int8, by
each engine, in turns. A product whose numbers are wrong (int8 that saturates) is no ceiling, and the table says so.
Reports give each variant's share of the highest ceiling of its precision."""

EPILOG = """\
example:
  m3-bench roofline -o roofline.json"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "roofline",
        help="this machine's fp32, bf16 and int8 ceilings",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=default_threads(), help="of each engine (default: the cores)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each engine, ten products a turn (default: 3)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--force", action="store_true", help="replace FILE")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from m3_bench import documents
    from m3_bench.roofline import measure
    from m3_export.progress import Progress

    checked_output(args.output, force=args.force)
    found = measure(checked_threads(args.threads), checked_rounds(args.rounds), Progress(quiet=args.quiet))
    documents.write(found, args.output)
    rows = "\n".join(map(_row, found.ceilings))
    sys.stdout.write(f"| precision | engine | TFLOP/s, best | median |\n|---|---|---|---|\n{rows}\n")
    return EXIT_OK


def _row(ceiling: "Ceiling") -> str:
    if not ceiling.flop_per_s:
        return f"| {ceiling.precision} | {ceiling.engine} | – | {ceiling.reason} |"
    best, middle = max(ceiling.flop_per_s) / 1e12, median(ceiling.flop_per_s) / 1e12
    return f"| {ceiling.precision} | {ceiling.engine} | {best:.3f} | {middle:.3f} |"
