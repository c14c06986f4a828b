"""`m3-bench compare`."""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from m3_bench import documents
from m3_bench.cli.arguments import Commands, add_output, checked_output
from m3_bench.compare import compare
from m3_bench.documents import Comparison, Prices
from m3_bench.figures import figures_of, parities_of, runs_of
from m3_bench.report.page import printed
from m3_bench.report.tables import overview, parity_tables, scenario_table
from m3_runtime.cli.arguments import add_parser, refuse_given
from m3_runtime.errors import InputError
from m3_runtime.io.progress import Progress

_DESCRIPTION = """\
Runs beside a recorded reference: parity per head against its vectors, latency and throughput side by side, and the cost
of a million tokens from the prices that you give.

Everything must be of one checkpoint and of the same texts, or it is refused. Runs of different machines are refused
too, because their times do not compare. The reference may be of any machine, one with a GPU for instance. A figure that
is too noisy has a "?" and says why; a p99 of fewer than 100 calls is not printed. Markdown tables go to stdout,
everything with its raw values to FILE for m3-bench report."""

_EPILOG = """\
examples:
  m3-bench compare gpu.safetensors run.json --price cpu=0.20/h gpu=3.00/h -o comparison.json
  m3-bench compare gpu.safetensors run.json peers.json -o comparison.json

  then:  m3-bench report comparison.json -o report.html

exit codes: 0 compared; 1 failed; 2 wrong usage, or files cannot be read or do not belong together"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    summary = "runs beside a reference: parity, speed, cost"
    parser = add_parser(commands, "compare", _run, summary=summary, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("reference", type=Path, metavar="REFERENCE", help="what m3-bench record wrote")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="what m3-bench run or peers wrote")
    add_output(parser, "json")
    text = "an hour of the cpu or gpu machine"
    parser.add_argument("--price", nargs="+", default=[], metavar="ROLE=AMOUNT/h", help=text)
    parser.add_argument("--currency", default="USD", help="of the prices (default: USD)")


def _run(args: argparse.Namespace) -> int:
    checked_output(args.output, force=args.force, inputs=[args.reference, *args.runs])
    if not args.price:
        refuse_given(args, args.command_parser, ["currency"], "is for --price, which is not given")
    prices = parsed_prices(args.price, args.currency)
    found = compare(args.reference, args.runs, prices, Progress(quiet=args.quiet))
    if args.output is not None:
        documents.write(found, args.output)
    sys.stdout.write("\n".join(_printed(found)) + "\n")
    return 0


def parsed_prices(words: Sequence[str], currency: str) -> Prices:
    """Prices of an hour, by role.

    Raises:
        InputError: an unknown or repeated role, or no price.

    >>> parsed_prices(["cpu=0.20/h", "gpu=3/h"], "EUR")
    Prices(currency='EUR', cpu=0.2, gpu=3.0)
    """
    found: dict[str, float] = {}
    for word in words:
        role, _, text = word.removesuffix("/h").partition("=")
        try:
            amount = float(text)
        except ValueError:
            amount = math.nan
        if role not in {"cpu", "gpu"} or not word.endswith("/h") or not 0 <= amount < math.inf:
            raise InputError(
                f"--price {word}: expected cpu=AMOUNT/h or gpu=AMOUNT/h, AMOUNT 0 or more, as in cpu=0.20/h"
            )
        if role in found:
            raise InputError(f"--price {word}: the price of {role} is given twice; give it once")
        found[role] = amount
    return Prices(currency, found.get("cpu"), found.get("gpu"))


def _printed(comparison: Comparison) -> Iterator[str]:
    """The comparison for a terminal: parity, each scenario, and what speaks against trusting it."""
    figures = figures_of(runs_of(comparison, ""))
    names = ", ".join(contender.name for contender in comparison.reference.contenders)
    runs = "1 run" if len(comparison.runs) == 1 else f"{len(comparison.runs)} runs"
    yield f"# {comparison.reference.model.name}: {names} and {runs}\n"
    yield from (f"* {note}" for note in comparison.notes)
    parities = list(parities_of(comparison, figures.entries))
    currency = comparison.prices.currency
    scenarios = (scenario_table(figures, scenario, currency, None, ()) for scenario in figures.scenarios)
    speed = [overview(figures)] if figures.scenarios else []
    yield "\n" + printed([*parity_tables(parities), *speed, *scenarios]) + "\n"
    yield from (f"* {remark}" for remark in (*figures.warnings, *figures.gaps))
