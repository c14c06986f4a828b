"""`m3-bench peers`."""

import argparse
from pathlib import Path

from m3_bench.cli.commands import Commands
from m3_bench.cli.run import measure, own_variants
from m3_bench.cli.shared import add_run_flags
from m3_runtime.encode.options import checked_threads
from m3_runtime.errors import InputError

NAMES = """\
lite-int8, lite-fp32, flagembedding-fp32, flagembedding-bf16, st-torch, st-torch-bf16, st-onnx, st-openvino,
llama-q8, llama-f16, candding"""

DESCRIPTION = f"""\
Measure others who run BGE-M3 on CPUs beside a bundle's variants: the same checkpoint, texts, threads and turns.

Each peer has an environment of its own, made on first use from pinned requirements (from the source tree only; 4 GB in
all, and a quarter of an hour to compile llama.cpp). Their vectors of the reference's texts are kept too, so that a fast
wrong one is shown as wrong.
Peers: {NAMES}."""

EPILOG = """\
examples:
  m3-bench peers out/ckpt-large out/large-balanced --scenarios quick -o peers.json
  m3-bench peers ./my-finetune bge-m3-cpu --peers lite-int8,flagembedding-fp32 --reference cpu.safetensors -o peers.json

exit codes: 0 measured; 1 a contender failed in a scenario (the others are kept); 2 usage"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "peers",
        help="other runtimes beside ours, each in its own environment",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder that the bundle was made of")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--peers", metavar="NAME,…", help="only these (default: all that this processor runs well)")
    parser.add_argument("--variants", metavar="NAME,…", help="of the bundle (default: all that this processor runs)")
    add_run_flags(parser)
    parser.add_argument("--work", type=Path, default=Path("out"), metavar="DIR", help="for environments and models")
    parser.add_argument("--torch", metavar="WORDS", help="what pip installs for torch, its index included")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from m3_bench.bars.contenders import Setup
    from m3_bench.bars.run import check_source
    from m3_bench.peers import PeerSource
    from m3_bench.run.peers import peer_candidates
    from m3_export.progress import Progress
    from m3_runtime import Bundle

    progress, bundle = Progress(quiet=args.quiet), Bundle.open(args.bundle)
    if not args.checkpoint.is_dir():
        raise InputError(
            f"{str(args.checkpoint)!r} is no folder; peers need the checkpoint that the bundle was made of"
        )
    check_source(args.checkpoint, bundle.manifest.source)
    threads = checked_threads(args.threads)
    setup = Setup(
        bundle=bundle,
        known={},
        checkpoint=args.checkpoint,
        work=args.work / "bars",
        peers=PeerSource(args.work / "peers", None if args.torch is None else tuple(args.torch.split())),
        threads=threads,
        is_quick=False,
        progress=progress,
    )
    ours = own_variants(bundle, _names(args.variants), threads, progress)
    return measure(args, bundle, [*ours, *peer_candidates(_names(args.peers), setup)], progress)


def _names(words: str | None) -> list[str]:
    return [name.strip() for name in (words or "").split(",") if name.strip()]
