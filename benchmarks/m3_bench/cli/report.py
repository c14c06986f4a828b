"""`m3-bench report`."""

import argparse
import sys
from pathlib import Path

from m3_bench.cli.commands import Commands
from m3_bench.cli.exit_codes import EXIT_OK
from m3_runtime.cli.arguments import add_parser
from m3_runtime.io.progress import Progress

_DESCRIPTION = """\
Write one page that shows what the other commands measured: figures, charts and tables, as HTML (one file that needs no
network; light and dark; for screens, phones and paper) and as Markdown. Every number links to its raw values.

FILE is what compare, run, peers, roofline, retrieval, margins or serve-load wrote, in any mix. A run that is part of a
comparison is shown once. What was not measured is left out."""

_EPILOG = """\
can the CPU replace the GPU box?
  m3-bench run BUNDLE --reference gpu.safetensors -o run.json
  m3-bench compare gpu.safetensors run.json --price cpu=0.20/h gpu=3.00/h -o comparison.json
  m3-bench report comparison.json -o report/

more examples:
  m3-bench report comparison.json roofline.json retrieval-*.json -o report/
  m3-bench report comparison.json --model my-finetune-v2 -o report/

FOLDER holds:
  index.html   the page
  report.md    the same as Markdown
  pictures/    its charts
  raw/         copies of the files

exit codes:
  0  written
  1  a file cannot be read, or runs are of different checkpoints
  2  wrong usage"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = add_parser(
        commands,
        "report",
        _run,
        summary="one page of everything that was measured",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what the other commands wrote")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="an older report there is replaced"
    )
    parser.add_argument("--model", metavar="NAME", help="what the page calls the model, instead of the recorded name")
    parser.add_argument("--force", action="store_true", help="replace FOLDER even if it is no report")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def _run(args: argparse.Namespace) -> int:
    # jinja2 and matplotlib are part of the bench extra, and only this command needs them
    from m3_bench.report.build import build_page
    from m3_bench.report.inputs import read_inputs
    from m3_bench.report.render import INDEX, check_target, write_report

    progress = Progress(quiet=args.quiet)
    check_target(args.output, args.files, force=args.force)
    with progress.step(f"Reading {len(args.files)} file{'s' * (len(args.files) > 1)}"):
        inputs = read_inputs(args.files)
    with progress.step("Writing the report"):
        write_report(build_page(inputs, args.model), args.output)
    sys.stdout.write(f"{args.output / INDEX}\n")
    return EXIT_OK
