"""`m3-bench bars`."""

import argparse
from pathlib import Path

from m3_bench.bars.rows import ROWS, Row
from m3_bench.bars.run import Wish, run
from m3_bench.cli.commands import Commands
from m3_bench.cli.exit_codes import EXIT_FAILED, EXIT_OK
from m3_runtime.cpu import default_threads
from m3_runtime.errors import InputError
from m3_runtime.options import checked_threads

DESCRIPTION = """\
Measure this project's bars: our variants against peers and against the processor's own ceiling, on one machine, in one
run, with the same threads and the same weights.

Each contender is a process of its own (peers in environments of their own, made on first use: 2 GB), loaded once and
asleep while another runs. They take turns (A B A B …), so read the ratios. A Markdown table goes to stdout, progress
to stderr, every raw value and what the machine is to FILE, which is written after each round."""

EPILOG = """\
rows, for --rows:
{rows}

examples:
  m3-bench bars --balanced out/large-balanced --strict out/large-strict \\
      --checkpoint out/ckpt-large -o bars.json
  m3-bench bars --balanced out/large-balanced --rows ceiling,mixed,dense -o bars.json
  m3-bench bars … --quick        one round of everything, to see that it runs; figures are rough

exit codes: 0 measured, whether the bars are met or not; 1 something could not be measured; 2 usage"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    bars = commands.add_parser(
        "bars",
        help="our variants against peers and the processor's ceiling",
        description=DESCRIPTION,
        epilog=EPILOG.format(rows="\n".join(map(_described, ROWS))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = bars.add_argument_group("what is measured")
    what.add_argument("--balanced", type=Path, required=True, metavar="BUNDLE", help="exported with --budget balanced")
    what.add_argument("--strict", type=Path, metavar="BUNDLE", help="the same weights, exported with --budget strict")
    what.add_argument("--checkpoint", type=Path, metavar="DIR", help="the bundles' source, which the peers run")
    what.add_argument("--rows", metavar="NAME,…", help="only these (default: all)")
    how = bars.add_argument_group("how")
    how.add_argument("--rounds", type=int, default=5, help="turns of each contender (default: 5)")
    how.add_argument("--quick", action="store_true", help="one round, and a short calibration of bge-m3-lite's build")
    how.add_argument("--threads", type=int, default=default_threads(), help="of each contender (default: the cores)")
    where = bars.add_argument_group("where")
    where.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="JSON with every raw value")
    where.add_argument(
        "--work", type=Path, default=Path("out"), metavar="DIR", help="for environments and models (default: out)"
    )
    where.add_argument("--torch", metavar="WORDS", help="what pip installs for torch, its index included")
    bars.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    return EXIT_OK if run(_wish(args)) else EXIT_FAILED


def _described(row: Row) -> str:
    first, *more = row.bars
    return "\n".join([f"  {row.name:10} {first.what}", *(f"  {'':10} {bar.what}" for bar in more)])


def _wish(args: argparse.Namespace) -> Wish:
    if args.rounds < 1:
        raise InputError(f"--rounds must be at least 1, got {args.rounds}")
    if not args.output.absolute().parent.is_dir():
        raise InputError(f"the folder of {str(args.output)!r} does not exist; create it first")
    return Wish(
        balanced=args.balanced,
        strict=args.strict,
        checkpoint=args.checkpoint,
        rows=_rows(args.rows),
        rounds=args.rounds,
        is_quick=args.quick,
        threads=checked_threads(args.threads),
        output=args.output,
        work=args.work,
        torch=None if args.torch is None else tuple(args.torch.split()),
    )


def _rows(names: str | None) -> tuple[Row, ...]:
    if names is None:
        return ROWS
    known = {row.name: row for row in ROWS}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise InputError(f"--rows {names}: there is no row {unknown or '(none given)'}; rows are {', '.join(known)}")
    return tuple(known[name] for name in wanted)
