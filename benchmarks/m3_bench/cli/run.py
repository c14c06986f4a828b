"""`m3-bench run` and `m3-bench peers`."""

import argparse
from pathlib import Path

from m3_bench.cli.arguments import Commands, add_scenarios, names
from m3_runtime.cli.arguments import add_integer, add_parser, add_threads
from m3_runtime.cpu import default_threads
from m3_runtime.exit_codes import FAILED, OK

_RUN = """\
Measure every variant of a bundle: vectors of the reference's texts, and each scenario's times, memory and CPU seconds.

Each variant is a process of its own, fresh for every scenario, pinned to the same CPUs and threads, and idle while
another runs; they take turns (A B A B …). Loading, the first call and the calls that count are kept apart. Raw values
go to FILE after each scenario; the same command resumes an interrupted run. Vectors are written beside it, one
.safetensors per variant.

Scenario files may hold targets too: figures to reach, which are printed as a table. `targets` has this project's,
`regret` compares the bundle's plan with the plans of other bundles (--plans)."""

_RUN_EXAMPLES = """\
examples:
  m3-bench run bge-m3-cpu --reference a100-fp16.safetensors -o run.json
  m3-bench run bge-m3-cpu --scenarios standard,long --rounds 5 -o run.json
  m3-bench run bge-m3-cpu --variants onnx-int8,openvino-int8 --scenarios my.toml --threads 4 -o run.json
  m3-bench run out/large-balanced --scenarios targets --targets ceiling,mixed,packed,processes -o targets.json
  m3-bench run out/large-balanced --scenarios regret --plans out/all-static,out/all-dynamic -o regret.json
"""

_PEERS = """\
Measure other BGE-M3 runtimes on CPUs beside a bundle's variants: the same checkpoint, texts, threads and turns.

Each peer has an environment of its own, made on first use from pinned requirements (4 GB in all, and a quarter of an
hour to compile llama.cpp). Their vectors of the reference's texts are kept too, so that a fast wrong one is shown as
wrong.
Peers: lite-int8, lite-fp32, flagembedding-fp32, flagembedding-bf16, st-torch, st-torch-bf16, st-onnx, st-openvino,
llama-q8, llama-f16, flagreranker-fp32. The last one runs rerankers.

Scenario files may hold targets too: figures to reach, which are printed as a table; `targets` has this project's."""

_PEERS_EXAMPLES = """\
examples:
  m3-bench peers out/ckpt-large out/large-balanced --scenarios quick -o peers.json
  m3-bench peers out/ckpt-large out/large-balanced --scenarios targets --rounds 5 -o targets.json
  m3-bench peers CHECKPOINT my-reranker --scenarios reranker --encoder bge-m3-cpu -o reranker.json
  m3-bench peers ./my-finetune bge-m3-cpu --peers lite-int8,flagembedding-fp32 --reference cpu.safetensors -o peers.json
"""

_EXIT_CODES = """
exit codes: 0 measured, whether targets are reached or not; 1 something could not be measured (the rest is kept);
2 wrong usage or input; 130 interrupted (what was measured is kept)"""


def add_to(commands: Commands) -> None:
    """Add both commands."""
    summary = "times, memory and vectors of a bundle's variants on this machine"
    run = add_parser(commands, "run", _run, summary=summary, description=_RUN, epilog=_RUN_EXAMPLES + _EXIT_CODES)
    summary = "other runtimes beside ours, each in its own environment"
    peers = add_parser(
        commands, "peers", _run_peers, summary=summary, description=_PEERS, epilog=_PEERS_EXAMPLES + _EXIT_CODES
    )
    peers.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder that the bundle was made of")
    _add_names(peers, "--peers", "NAME,…", "only these (default: all that this processor runs well)")
    peers.add_argument("--work", type=Path, default=Path("out"), metavar="DIR", help="for environments and models")
    peers.add_argument("--torch", metavar="WORDS", help="what pip installs for torch, its index included")
    for parser in (run, peers):
        parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
        _add_names(parser, "--variants", "NAME,…", "only these (default: all that this processor runs)")
        text = "an encoder's bundle, which a reranker of the same size is compared with"
        parser.add_argument("--encoder", type=Path, metavar="BUNDLE", help=text)
        _add_names(parser, "--targets", "NAME,…", "of the scenario files: only what these need is measured")
        text = "of m3-bench record: its texts are encoded"
        parser.add_argument("--reference", type=Path, metavar="FILE", help=text)
        parser.add_argument("--texts", type=Path, metavar="FILE", help="other texts (default: 97 in 26 languages)")
        add_scenarios(parser)
        add_integer(parser, "--rounds", "turns of each contender", default=3)
        add_threads(parser, "of each", default=default_threads())
        text = "continued if it is there"
        parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.json", help=text)
        parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    text = "other bundles of the same weights (m3-export --plan FILE --allow-over-budget), for regret"
    _add_names(run, "--plans", "BUNDLE,…", text)


def _add_names(parser: argparse.ArgumentParser, option: str, metavar: str, text: str) -> None:
    parser.add_argument(option, type=names, default=[], metavar=metavar, help=text)


def _run(args: argparse.Namespace) -> int:
    from m3_bench.run.command import run_variants

    return OK if run_variants(args) else FAILED


def _run_peers(args: argparse.Namespace) -> int:
    from m3_bench.run.command import run_peers

    return OK if run_peers(args) else FAILED
