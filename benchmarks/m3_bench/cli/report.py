"""`m3-bench report`."""

import argparse
import sys
from pathlib import Path

from m3_bench.cli.arguments import Commands, add_output, checked_output
from m3_runtime.cli.arguments import add_parser
from m3_runtime.errors import InputError
from m3_runtime.io.atomic import write_whole
from m3_runtime.io.progress import Progress

_DESCRIPTION = """\
Write one page that shows what the other commands measured: figures, charts and tables, as one HTML file that needs no
network and no script; light and dark; for screens, phones and paper.

FILE is what compare, run, peers, roofline, retrieval, margins, serve-load or soak wrote, in any mix. A run that is part
of a comparison is shown once. What was not measured is left out."""

_EPILOG = """\
can the CPU replace the GPU box?
  m3-bench run BUNDLE --reference gpu.safetensors -o run.json
  m3-bench compare gpu.safetensors run.json --price cpu=0.20/h gpu=3.00/h -o comparison.json
  m3-bench report comparison.json -o report.html

more examples:
  m3-bench report comparison.json roofline.json retrieval-*.json -o report.html
  m3-bench report comparison.json --model my-finetune-v2 -o report.html

exit codes: 0 written; 1 failed; 2 wrong usage, a file cannot be read, or runs are of other checkpoints or machines"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    summary = "one page of everything that was measured"
    parser = add_parser(commands, "report", _run, summary=summary, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what the other commands wrote")
    add_output(parser, "html", is_required=True)
    parser.add_argument("--model", metavar="NAME", help="what the page calls the model, instead of the recorded name")


def _run(args: argparse.Namespace) -> int:
    # jinja2 and matplotlib are part of the bench extra, and only this command needs them
    from m3_bench.report.build import build_page
    from m3_bench.report.inputs import read_inputs
    from m3_bench.report.page import html

    if args.output.suffix != ".html":
        raise InputError(f"-o {args.output}: a report is one file now, without a folder of raw values: -o report.html")
    checked_output(args.output, force=args.force, inputs=args.files)
    progress = Progress(quiet=args.quiet)
    with progress.step(f"Reading {len(args.files)} file{'s' * (len(args.files) > 1)}"):
        inputs = read_inputs(args.files)
    with progress.step("Writing the report"):
        write_whole(args.output, html(build_page(inputs, args.model)).encode())
    sys.stdout.write(f"{args.output}\n")
    return 0
