"""The command line: `m3-bench`. Each module adds its commands; the function of a command returns an exit code."""

import argparse
import sys
from collections.abc import Sequence

from m3_runtime.cli.ending import run_command
from m3_runtime.errors import InputError
from m3_runtime.version import __version__

_DESCRIPTION = """\
Measure BGE-M3 bundles: outputs, latency, retrieval and cost, against PyTorch on a GPU or CPU and against others.

m3-bench COMMAND --help explains a command and shows examples."""

_OF_EXTRA_EXPORT = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "huggingface_hub")
_GONE = {
    "bars": """\
bars is gone. Its rows are targets now, of the same names:
  m3-bench peers CHECKPOINT BUNDLE --scenarios targets [--targets NAME,…] -o FILE     for bars BUNDLE --checkpoint …
  m3-bench run BUNDLE --scenarios targets --targets NAME,… -o FILE                    for rows without peers
  m3-bench run BUNDLE --scenarios regret --plans BUNDLE,… -o FILE                     for --plans""",
    "--mixed-machines": "--mixed-machines is gone: compare the runs of each machine, and make a report of each",
    "--layout": "--layout is gone: a dataset's layout is detected by its files",
    "--queries-from": "--queries-from is gone: write the other language's questions as a BEIR folder's queries.jsonl",
    "--colbert-memory": "--colbert-memory is gone: ColBERT rows of candidates alone are kept, a query's at a time",
    "--cpus": "--cpus is gone: taskset -c 0,2 m3-bench … holds the command and its workers to those",
}
"""What commands and options were replaced by."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)

    def run() -> int:
        options = (word.partition("=")[0] for word in words if word.startswith("--"))
        if gone := next((word for word in (*words[:1], *options) if word in _GONE), None):
            raise InputError(_GONE[gone])
        args, unknown = parser().parse_known_args(words)
        if unknown:
            args.command_parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        code: int = args.run(args)
        return code

    return run_command(
        "m3-bench",
        run,
        memory_remedy="measure less: fewer documents or queries, shorter texts",
        extras_of=lambda package: "bench,export" if package in _OF_EXTRA_EXPORT else "bench",
    )


def parser() -> argparse.ArgumentParser:
    """The command line, all commands included."""
    # their packages come with extras, whose absence `main` reports
    from m3_bench.cli import compare, equivalence, record, report, retrieval, roofline, run, serve_load, soak

    top = argparse.ArgumentParser(
        prog="m3-bench", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"m3-bench {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in (record, run, compare, report, roofline, retrieval, equivalence, serve_load, soak):
        command.add_to(commands)
    return top
