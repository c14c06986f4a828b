"""The command line: `m3-bench`. Each command is a module with `add_to(commands)`; its function returns an exit code."""

import argparse
import sys
from collections.abc import Sequence

from m3_bench.cli.exit_codes import EXIT_FAILED, EXIT_USAGE
from m3_runtime.errors import ExtraNotInstalledError, InputError, M3Error
from m3_runtime.version import __version__

_DESCRIPTION = """\
Measure BGE-M3 bundles: outputs, latency, retrieval and cost, against PyTorch on a GPU or CPU and against others.

m3-bench COMMAND --help explains a command and shows examples."""

_OF_EXTRA_EXPORT = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "huggingface_hub")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    try:
        args = _parser().parse_args(argv)
        code: int = args.run(args)
    except ModuleNotFoundError as error:
        sys.stderr.write(f"m3-bench: {_remedy(error)}\n")
        return EXIT_USAGE
    except (InputError, ExtraNotInstalledError) as error:
        sys.stderr.write(f"m3-bench: {error}\n")
        return EXIT_USAGE
    except (M3Error, OSError) as error:
        sys.stderr.write(f"m3-bench: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("m3-bench: interrupted; what was measured until now is kept\n")
        return EXIT_FAILED
    return code


def _remedy(error: ModuleNotFoundError) -> str:
    """Names the extra that brings a missing package.

    Raises:
        ModuleNotFoundError: the package is our own, so no extra brings it.
    """
    package = (error.name or "").partition(".")[0]
    if package.startswith("m3_"):
        raise error
    extras = "bench,export" if package in _OF_EXTRA_EXPORT else "bench"
    return f'{package} is not installed; this command needs: pip install "m3-runtime[{extras}]"'


def _parser() -> argparse.ArgumentParser:
    # their packages come with extras, whose absence `main` reports
    from m3_bench.cli import bars, compare, margins, peers, record, report, retrieval, roofline, run, serve_load

    parser = argparse.ArgumentParser(
        prog="m3-bench", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"m3-bench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (record, run, peers, compare, report, roofline, retrieval, margins, serve_load, bars):
        command.add_to(commands)
    return parser
