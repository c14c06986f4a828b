"""`m3-bench soak`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from m3_bench.cli.arguments import Commands, checked_output
from m3_runtime.cli.arguments import MOST_SECONDS, add_integer, add_parser, add_threads, number
from m3_runtime.errors import InputError
from m3_runtime.exit_codes import OK, OVER_LIMIT

if TYPE_CHECKING:
    from m3_bench.cycles import Cycle

_WARMUP_MINUTES = 5.0

_DESCRIPTION = """\
Serve a bundle for long, under load that changes, and see whether the server holds more and more.

A server in a process of its own gets requests of many shapes in cycles: several clients, one alone, connections that
end in the middle, four times more than it can answer, and what was dropped once more. Every answer is compared with
the encoder's vectors. At the end of each cycle, with no request under way, the server's resident memory, descriptors
and threads are noted. The slope is the median over all pairs of cycles (Theil-Sen), after --warmup-minutes. Memory
grows if the slope's 90 % interval is above --mb-per-hour as a whole; the longer the soak, the narrower it is."""

_EPILOG = """\
examples:
  m3-bench soak my-bundle --minutes 30 -o soak.json
  m3-bench soak my-bundle --variant onnx-int8 --minutes 1440 -o day.json
  m3-bench report soak.json -o report.html                                    # the chart

exit codes: 0 steady; 1 not measured; 2 wrong usage or bundle; 3 over a limit: memory grows, a wrong answer, something
leaked; 130 interrupted (the cycles until then are in FILE)"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    summary = "a server under changing load for long: memory, leaks, wrong answers"
    parser = add_parser(commands, "soak", _run, summary=summary, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument("--variant", default="auto", help="of the bundle (default: the fastest that runs here)")
    add_threads(parser, "of the server's engine", default=1)
    add_integer(parser, "--clients", "at a time", default=8)
    positive = number(above=0, most=MOST_SECONDS)
    parser.add_argument("--minutes", type=positive, default=30.0, help="of load (default: %(default)s)")
    text = "before growth counts (default: 5, or half of --minutes where that is less)"
    parser.add_argument("--warmup-minutes", type=number(least=0, most=MOST_SECONDS), metavar="M", help=text)
    parser.add_argument("--phase-s", type=positive, default=4.0, metavar="S", help="of a phase (default: %(default)s)")
    parser.add_argument("--mb-per-hour", type=number(), default=1.0, help="most growth (default: %(default)s)")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.json", help="written after each cycle"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE")


def _run(args: argparse.Namespace) -> int:
    from m3_bench import documents
    from m3_bench.soak import SoakPlan, soak
    from m3_bench.stats import growth

    checked_output(args.output, force=args.force, inputs=[args.bundle])
    warmup_minutes = min(_WARMUP_MINUTES, args.minutes / 2) if args.warmup_minutes is None else args.warmup_minutes
    if warmup_minutes >= args.minutes:
        raise InputError(f"--warmup-minutes {warmup_minutes:g} must be less than --minutes {args.minutes:g}")
    lengths_s = (60 * args.minutes, 60 * warmup_minutes, args.phase_s)
    plan = SoakPlan(args.bundle, args.variant, args.threads, args.clients, *lengths_s)
    for found in soak(plan):
        documents.write(found, args.output)
        sys.stdout.write(_in_words(found.cycles[-1]) + "\n")
        sys.stdout.flush()
    shown = growth(found)
    over = shown.over(args.mb_per_hour)
    sys.stdout.write(
        f"resident memory: {shown.mb_per_hour:+.2f} MB/h (90 %: {shown.low:+.2f} to {shown.high:+.2f}); "
        f"{shown.descriptors:g} descriptors, {shown.threads:g} threads leaked; {shown.wrong} wrong, "
        f"{sum(one.answered for one in found.cycles)} answered\n{'; '.join(over) or 'steady'}\n"
    )
    return OVER_LIMIT if over else OK


def _in_words(cycle: "Cycle") -> str:
    held = f"{cycle.resident_bytes / 1e6:.1f} MB (under load {cycle.peak_bytes / 1e6:.1f})"
    return (
        f"[{cycle.seconds:7.0f} s] {held}, {cycle.descriptors} descriptors, {cycle.threads} threads; "
        f"{cycle.answered} answered, {cycle.refused} refused, {cycle.dropped} dropped"
        + "".join(f", {count} × {error}" for error, count in cycle.errors.items())
    )
