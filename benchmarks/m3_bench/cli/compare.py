"""`m3-bench compare`."""

import argparse
import sys
from pathlib import Path

from m3_bench import documents
from m3_bench.cli.commands import Commands
from m3_bench.cli.exit_codes import EXIT_OK
from m3_bench.cli.shared import checked_output
from m3_bench.compare import prices
from m3_bench.compare.compare import compare
from m3_bench.compare.table import in_words
from m3_export.progress import Progress
from m3_runtime.errors import InputError

DESCRIPTION = """\
Runs beside a recorded reference: parity per head against its vectors, latency and throughput side by side, and the cost
of a million tokens from the prices that you give.

Everything must be of one checkpoint and of the same texts, or it is refused. Runs of different machines are refused
too, because their times do not compare; with --mixed-machines each figure says its machine. A reference from an
accelerator is of another machine by its nature and is welcome. A figure that is too noisy says so and why; a p99 of
too few calls is not printed. A Markdown table goes to stdout, everything with its raw values to FILE for m3-bench
report."""

EPILOG = """\
examples:
  m3-bench compare gpu.safetensors run.json --price cpu=0.20/h gpu=3.00/h -o comparison.json
  m3-bench compare gpu.safetensors run.json peers.json -o comparison.json
  m3-bench compare cpu.safetensors laptop.json server.json --mixed-machines -o comparison.json

  then:  m3-bench report comparison.json -o report/

exit codes: 0 compared; 1 files cannot be read or do not belong together; 2 usage"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "compare",
        help="runs beside a reference: parity, speed, cost",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="what m3-bench record wrote")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="what m3-bench run or peers wrote")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="JSON, with every raw value again")
    parser.add_argument(
        "--price", nargs="+", default=[], metavar="ROLE=AMOUNT/h", help="an hour of the cpu or gpu machine"
    )
    parser.add_argument("--currency", default="USD", help="of the prices (default: USD)")
    parser.add_argument("--mixed-machines", action="store_true", help="runs may be of different machines")
    parser.add_argument("--force", action="store_true", help="replace FILE")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.output is not None and args.output.absolute() in {p.absolute() for p in (args.reference, *args.runs)}:
        raise InputError(f"-o {args.output} is one of the files that are compared; write to another")
    if args.output is not None:
        checked_output(args.output, force=args.force)
    found = compare(
        args.reference,
        args.runs,
        prices.parse(args.price, args.currency),
        Progress(quiet=args.quiet),
        mixed_machines=args.mixed_machines,
    )
    if args.output is not None:
        documents.write(found, args.output)
    sys.stdout.write(in_words(found) + "\n")
    return EXIT_OK
