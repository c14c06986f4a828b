"""The command line: `m3-bench`. Each module adds its commands; the function of a command returns an exit code."""

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


_BARS = """\
bars is gone. Its rows are targets now, of the same names:
  m3-bench peers CHECKPOINT BUNDLE --scenarios targets [--targets NAME,…] -o FILE     for bars BUNDLE --checkpoint …
  m3-bench run BUNDLE --scenarios targets --targets NAME,… -o FILE                    for rows without peers
  m3-bench run BUNDLE --scenarios regret --plans BUNDLE,… -o FILE                     for --plans"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        if words[:1] == ["bars"]:
            raise InputError(_BARS)
        args = _parser().parse_args(words)
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
    from m3_bench.cli import compare, record, report, retrieval, roofline, run, serve_load, soak

    parser = argparse.ArgumentParser(
        prog="m3-bench", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"m3-bench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (record, run, compare, report, roofline, retrieval, serve_load, soak):
        command.add_to(commands)
    return parser
