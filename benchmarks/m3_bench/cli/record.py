"""`m3-bench record`."""

import argparse
import sys
from pathlib import Path

from m3_bench.cli.arguments import Commands, add_output, add_scenarios, checked_output
from m3_runtime.bundle.manifest import Pooling
from m3_runtime.cli.arguments import add_integer, add_parser, add_threads
from m3_runtime.cpu import default_threads
from m3_runtime.errors import InputError
from m3_runtime.io.formats import SourceFormat, format_of, packing_of
from m3_runtime.io.readers import raw_rows
from m3_runtime.io.rows import BadRow, Columns, Row
from m3_runtime.pairs import is_blank

_DESCRIPTION = """\
Record PyTorch's vectors and times for a checkpoint: the reference that CPU bundles are compared with.

Runs on any machine with PyTorch, a GPU box for instance; needs torch and transformers, nothing else of the exporter.
The file (vectors of all three heads, every time, the machine) is moved to the CPU server, where
`m3-bench run --reference FILE` encodes the same texts and `m3-bench compare FILE run.json` puts them side by side."""

_EPILOG = """\
examples:
  m3-bench record BAAI/bge-m3 --device cuda --dtype fp16 -o a100-fp16.safetensors
  m3-bench record BAAI/bge-m3 --device cuda --dtype fp32 --scenarios standard,long -o a100-fp32.safetensors
  m3-bench record ./my-finetune --device cpu --dtype fp32 --texts my-texts.jsonl -o cpu.safetensors
  m3-bench record ./my-finetune --device cuda --texts corpus.txt --scenarios none -o vectors.safetensors   no times

Texts are encoded one by one, so that padding can hide nothing; scenarios in padded batches, as FlagEmbedding
runs them."""


def add_to(commands: Commands) -> None:
    """Add the command."""
    summary = "PyTorch's vectors and times, on a GPU or CPU, as the reference"
    parser = add_parser(commands, "record", _run, summary=summary, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder, hub id, or a name such as mini-m3")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--dtype", choices=("fp32", "tf32", "fp16", "bf16"), default="fp32", help="(default: fp32)")
    parser.add_argument(
        "--texts", type=Path, metavar="FILE", help="JSONL, with ids or without, or lines (default: 97 in 26 languages)"
    )
    parser.add_argument("--pooling", choices=[pooling.value for pooling in Pooling], help="as for m3-export")
    add_scenarios(parser)
    add_integer(parser, "--rounds", "turns of each scenario", default=3)
    add_threads(parser, "of PyTorch on cpu", default=default_threads())
    add_output(parser, "safetensors", is_required=True)


def _run(args: argparse.Namespace) -> int:
    from m3_bench.record import RecordSpec, record
    from m3_bench.scenarios import read_plan
    from m3_bench.workers.torch_reference import Dtype
    from m3_export.calibration.texts import probe_texts
    from m3_runtime.io.progress import Progress

    inputs = [Path(args.checkpoint), *([args.texts] if args.texts else [])]
    checked_output(args.output, force=args.force, inputs=inputs)
    texts, ids = _given(args.texts) if args.texts else (tuple(text.text for text in probe_texts()), ())
    spec = RecordSpec(
        source=args.checkpoint,
        device=args.device,
        dtype=Dtype(args.dtype),
        texts=texts,
        ids=ids,
        plan=read_plan(args.scenarios),
        rounds=args.rounds,
        threads=args.threads,
        pooling=args.pooling,
        output=args.output,
    )
    recording = record(spec, Progress(quiet=args.quiet))
    sys.stdout.write(
        f"{args.output}: {recording.run.contenders[0].name}, {recording.run.model.name}, "
        f"{len(recording.texts)} texts, {len(recording.run.scenarios)} scenarios\n"
    )
    return 0


def _given(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A file's texts, read as m3-runtime bulk reads them, and their ids; no ids where not one text has its own.

    Raises:
        InputError: the file or a row cannot be read, a text is empty, an id comes twice, or there is no text.
    """
    source_format = format_of(path.name) or SourceFormat.LINES
    if packing_of(path.name) or source_format not in (SourceFormat.LINES, SourceFormat.JSONL):
        raise InputError(f"texts {path}: expected a text on every line, or JSONL, unpacked; convert it")
    rows: dict[str, Row] = {}
    for raw in raw_rows(str(path), source_format, Columns()):
        row = raw.parsed()
        if isinstance(row, BadRow):
            raise InputError(f"{row.place}: {row.reason}")
        if is_blank(row.text):
            if source_format is SourceFormat.LINES:
                continue
            raise InputError(f"{row.place}: the text is empty")
        if (first := rows.setdefault(row.id, row)) is not row:
            raise InputError(
                f"{row.place}: the id {row.id!r} is that of {first.place} too; give each text its own, or none"
            )
    if not rows:
        raise InputError(f'{str(path)!r} holds no texts; expected one text a line, or JSONL with a key "text"')
    has_ids = any(row.id != row.place for row in rows.values())
    return tuple(row.text for row in rows.values()), tuple(rows) if has_ids else ()
