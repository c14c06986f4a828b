"""`m3-bench run`."""

import argparse
from pathlib import Path

from m3_bench.cli.commands import Commands
from m3_bench.cli.exit_codes import EXIT_FAILED, EXIT_OK
from m3_bench.cli.shared import add_run_flags, checked_cpus, checked_rounds
from m3_runtime.encode.options import checked_threads

_DESCRIPTION = """\
Measure every variant of a bundle: vectors of the reference's texts, and each scenario's times, memory and CPU seconds.

Each variant is a process of its own, fresh for every scenario, held to the same CPUs and threads, and asleep while
another runs; they take turns (A B A B …). Loading, the first call and the calls that count are kept apart, and so are
tokenizing, the engine and the rest. Raw values go to FILE after each scenario; the same command goes on where it was
interrupted. Vectors lie beside it, one .safetensors a variant.

Scenario files may hold targets too: figures to reach, which are printed as a table. `targets` has this project's,
`regret` compares the bundle's plan with the plans of other bundles (--plans)."""

_EPILOG = """\
examples:
  m3-bench run bge-m3-cpu --reference a100-fp16.safetensors -o run.json
  m3-bench run bge-m3-cpu --scenarios standard,long --rounds 5 -o run.json
  m3-bench run bge-m3-cpu --variants onnx-int8,openvino-int8 --scenarios my.toml --threads 4 --cpus 0,2,4,6 -o run.json
  m3-bench run out/large-balanced --scenarios targets --targets ceiling,mixed,packed,processes -o targets.json
  m3-bench run out/large-balanced --scenarios regret --plans out/all-static,out/all-dynamic -o regret.json

exit codes: 0 measured, whether targets are reached or not; 1 something could not be measured (the rest is kept);
2 usage"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "run",
        help="times, memory and vectors of a bundle's variants on this machine",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--variants", metavar="NAME,…", help="only these (default: all that this processor runs)")
    parser.add_argument(
        "--plans",
        metavar="BUNDLE,…",
        help="other bundles of the same weights (m3-export --plan FILE --allow-over-budget), for regret",
    )
    add_targets(parser)
    add_run_flags(parser)
    parser.set_defaults(run=_run)


def add_targets(parser: argparse.ArgumentParser) -> None:
    """`--targets`."""
    parser.add_argument("--targets", metavar="NAME,…", help="of the scenario files: only what these need is measured")


def checked(args: argparse.Namespace) -> argparse.Namespace:
    """The command line of `run` and `peers`, its rounds, threads and CPUs checked.

    Raises:
        InputError: one of them cannot be.
    """
    args.rounds, args.threads = checked_rounds(args.rounds), checked_threads(args.threads)
    args.cpus = checked_cpus(args.cpus, args.threads)
    return args


def _run(args: argparse.Namespace) -> int:
    from m3_bench.run.command import run_variants

    return EXIT_OK if run_variants(checked(args)) else EXIT_FAILED
