"""`m3-bench peers`."""

import argparse
from pathlib import Path

from m3_bench.cli.commands import Commands
from m3_bench.cli.exit_codes import EXIT_FAILED, EXIT_OK
from m3_bench.cli.run import add_targets, checked
from m3_bench.cli.shared import add_run_flags

_PEERS = """\
lite-int8, lite-fp32, flagembedding-fp32, flagembedding-bf16, st-torch, st-torch-bf16, st-onnx, st-openvino,
llama-q8, llama-f16, candding"""

_DESCRIPTION = f"""\
Measure others who run BGE-M3 on CPUs beside a bundle's variants: the same checkpoint, texts, threads and turns.

Each peer has an environment of its own, made on first use from pinned requirements (4 GB in all, and a quarter of an
hour to compile llama.cpp). Their vectors of the reference's texts are kept too, so that a fast wrong one is shown as
wrong.
Peers: {_PEERS}.

Scenario files may hold targets too: figures to reach, which are printed as a table; `targets` has this project's."""

_EPILOG = """\
examples:
  m3-bench peers out/ckpt-large out/large-balanced --scenarios quick -o peers.json
  m3-bench peers out/ckpt-large out/large-balanced --scenarios targets --rounds 5 -o targets.json
  m3-bench peers ./my-finetune bge-m3-cpu --peers lite-int8,flagembedding-fp32 --reference cpu.safetensors -o peers.json

exit codes: 0 measured, whether targets are reached or not; 1 something could not be measured (the rest is kept);
2 usage"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "peers",
        help="other runtimes beside ours, each in its own environment",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder that the bundle was made of")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--peers", metavar="NAME,…", help="only these (default: all that this processor runs well)")
    parser.add_argument("--variants", metavar="NAME,…", help="of the bundle (default: all that this processor runs)")
    add_targets(parser)
    add_run_flags(parser)
    parser.add_argument("--work", type=Path, default=Path("out"), metavar="DIR", help="for environments and models")
    parser.add_argument("--torch", metavar="WORDS", help="what pip installs for torch, its index included")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from m3_bench.run.command import run_peers

    return EXIT_OK if run_peers(checked(args)) else EXIT_FAILED
