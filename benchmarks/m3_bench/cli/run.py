"""`m3-bench run` and `m3-bench peers`."""

import argparse
from pathlib import Path

from m3_bench.cli.commands import Commands, names
from m3_bench.cli.exit_codes import EXIT_FAILED, EXIT_OK
from m3_bench.cli.shared import add_run_flags, checked_cpus, checked_rounds
from m3_runtime.cli.arguments import add_parser
from m3_runtime.encode.options import checked_threads

_RUN = """\
Measure every variant of a bundle: vectors of the reference's texts, and each scenario's times, memory and CPU seconds.

Each variant is a process of its own, fresh for every scenario, held to the same CPUs and threads, and asleep while
another runs; they take turns (A B A B …). Loading, the first call and the calls that count are kept apart, and so are
tokenizing, the engine and the rest. Raw values go to FILE after each scenario; the same command goes on where it was
interrupted. Vectors lie beside it, one .safetensors a variant.

Scenario files may hold targets too: figures to reach, which are printed as a table. `targets` has this project's,
`regret` compares the bundle's plan with the plans of other bundles (--plans)."""

_RUN_EXAMPLES = """\
examples:
  m3-bench run bge-m3-cpu --reference a100-fp16.safetensors -o run.json
  m3-bench run bge-m3-cpu --scenarios standard,long --rounds 5 -o run.json
  m3-bench run bge-m3-cpu --variants onnx-int8,openvino-int8 --scenarios my.toml --threads 4 --cpus 0,2,4,6 -o run.json
  m3-bench run out/large-balanced --scenarios targets --targets ceiling,mixed,packed,processes -o targets.json
  m3-bench run out/large-balanced --scenarios regret --plans out/all-static,out/all-dynamic -o regret.json
"""

_PEERS = """\
Measure others who run BGE-M3 on CPUs beside a bundle's variants: the same checkpoint, texts, threads and turns.

Each peer has an environment of its own, made on first use from pinned requirements (4 GB in all, and a quarter of an
hour to compile llama.cpp). Their vectors of the reference's texts are kept too, so that a fast wrong one is shown as
wrong.
Peers: lite-int8, lite-fp32, flagembedding-fp32, flagembedding-bf16, st-torch, st-torch-bf16, st-onnx, st-openvino,
llama-q8, llama-f16, candding.

Scenario files may hold targets too: figures to reach, which are printed as a table; `targets` has this project's."""

_PEERS_EXAMPLES = """\
examples:
  m3-bench peers out/ckpt-large out/large-balanced --scenarios quick -o peers.json
  m3-bench peers out/ckpt-large out/large-balanced --scenarios targets --rounds 5 -o targets.json
  m3-bench peers ./my-finetune bge-m3-cpu --peers lite-int8,flagembedding-fp32 --reference cpu.safetensors -o peers.json
"""

_EXIT_CODES = """
exit codes: 0 measured, whether targets are reached or not; 1 something could not be measured (the rest is kept);
2 usage"""


def add_to(commands: Commands) -> None:
    """Add both commands."""
    summary = "times, memory and vectors of a bundle's variants on this machine"
    epilog = _RUN_EXAMPLES + _EXIT_CODES
    run = add_parser(commands, "run", _run, summary=summary, description=_RUN, epilog=epilog)
    summary = "other runtimes beside ours, each in its own environment"
    epilog = _PEERS_EXAMPLES + _EXIT_CODES
    peers = add_parser(commands, "peers", _run_peers, summary=summary, description=_PEERS, epilog=epilog)
    peers.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder that the bundle was made of")
    peers.add_argument(
        "--peers",
        type=names,
        default=[],
        metavar="NAME,…",
        help="only these (default: all that this processor runs well)",
    )
    peers.add_argument("--work", type=Path, default=Path("out"), metavar="DIR", help="for environments and models")
    peers.add_argument("--torch", metavar="WORDS", help="what pip installs for torch, its index included")
    for parser in (run, peers):
        parser.add_argument("bundle", type=Path, metavar="BUNDLE")
        parser.add_argument(
            "--variants",
            type=names,
            default=[],
            metavar="NAME,…",
            help="only these (default: all that this processor runs)",
        )
        text = "of the scenario files: only what these need is measured"
        parser.add_argument("--targets", type=names, default=[], metavar="NAME,…", help=text)
        add_run_flags(parser)
    run.add_argument(
        "--plans",
        type=names,
        default=[],
        metavar="BUNDLE,…",
        help="other bundles of the same weights (m3-export --plan FILE --allow-over-budget), for regret",
    )


def _checked(args: argparse.Namespace) -> argparse.Namespace:
    args.rounds, args.threads = checked_rounds(args.rounds), checked_threads(args.threads)
    args.cpus = checked_cpus(args.cpus, args.threads)
    return args


def _run(args: argparse.Namespace) -> int:
    from m3_bench.run.command import run_variants

    return EXIT_OK if run_variants(_checked(args)) else EXIT_FAILED


def _run_peers(args: argparse.Namespace) -> int:
    from m3_bench.run.command import run_peers

    return EXIT_OK if run_peers(_checked(args)) else EXIT_FAILED
