"""`m3-bench bars`."""

import argparse
from pathlib import Path

from m3_bench.bars.rows import Column, Row, rows_for
from m3_bench.bars.run import Wish, run
from m3_bench.cli.commands import Commands
from m3_bench.cli.exit_codes import EXIT_FAILED, EXIT_OK
from m3_runtime.cpu import default_threads
from m3_runtime.encode.options import checked_threads
from m3_runtime.errors import InputError

DESCRIPTION = """\
Measure this project's bars: our variants against peers and against the processor's own ceiling, on one machine, in one
run, with the same threads and the same weights.

Each contender is a process of its own (peers in environments of their own, made on first use: 2 GB), loaded once and
asleep while another runs. They take turns (A B A B …), so read the ratios. A Markdown table goes to stdout, progress
to stderr, every raw value and what the machine is to FILE, which is written after each round."""

EPILOG = """\
rows, for --rows (and regret-VARIANT with --plans):
{rows}

examples:
  m3-bench bars out/large-balanced --checkpoint out/ckpt-large -o bars.json
  m3-bench bars out/large-balanced --rows ceiling,mixed,processes -o bars.json
  m3-bench bars out/large-balanced --plans out/all-static,out/all-dynamic --rows regret-openvino-int8 -o regret.json
  m3-bench bars … --quick        one round of everything, to see that it runs; figures are rough

exit codes: 0 measured, whether the bars are met or not; 1 something could not be measured; 2 usage"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    bars = commands.add_parser(
        "bars",
        help="our variants against peers and the processor's ceiling",
        description=DESCRIPTION,
        epilog=EPILOG.format(rows="\n".join(map(_described, rows_for(Column.VNNI)))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = bars.add_argument_group("what is measured")
    what.add_argument("bundle", type=Path, metavar="BUNDLE", help="whose variants are ours")
    what.add_argument("--checkpoint", type=Path, metavar="DIR", help="the bundle's source, which the peers run")
    what.add_argument(
        "--plans", metavar="BUNDLE,…", help="exported with --plan FILE --allow-over-budget: regret is against these"
    )
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
    return "\n".join([f"  {row.name:16} {first.what}", *(f"  {'':16} {bar.what}" for bar in more)])


def _wish(args: argparse.Namespace) -> Wish:
    if args.rounds < 1:
        raise InputError(f"--rounds must be at least 1, got {args.rounds}")
    if not args.output.absolute().parent.is_dir():
        raise InputError(f"the folder of {str(args.output)!r} does not exist; create it first")
    rows = _names(args.rows)
    if args.rows is not None and not rows:
        raise InputError("--rows: none is given")
    return Wish(
        bundle=args.bundle.absolute(),
        known=tuple(Path(name).absolute() for name in _names(args.plans)),
        checkpoint=args.checkpoint,
        rows=rows,
        rounds=args.rounds,
        is_quick=args.quick,
        threads=checked_threads(args.threads),
        output=args.output,
        work=args.work,
        torch=None if args.torch is None else tuple(args.torch.split()),
    )


def _names(words: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (words or "").split(",") if name.strip())
