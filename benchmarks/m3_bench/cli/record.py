"""`m3-bench record`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from m3_bench.cli.arguments import Commands, add_output, add_scenarios, checked_output
from m3_runtime.bundle.manifest import Pooling
from m3_runtime.cli.arguments import add_integer, add_parser, add_threads
from m3_runtime.cpu import default_threads
from m3_runtime.errors import InputError
from m3_runtime.io.formats import SourceFormat, format_of
from m3_runtime.io.readers import raw_rows
from m3_runtime.io.rows import BadRow, Columns

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
    from m3_export.calibration.texts import probe_texts, read_texts
    from m3_runtime.io.progress import Progress

    inputs = [Path(args.checkpoint), *([args.texts] if args.texts else [])]
    checked_output(args.output, force=args.force, inputs=inputs)
    found = read_texts(args.texts, "texts") if args.texts else probe_texts()
    texts = tuple(text.text for text in found)
    spec = RecordSpec(
        source=args.checkpoint,
        device=args.device,
        dtype=Dtype(args.dtype),
        texts=texts,
        ids=_ids_of(args.texts, texts) if args.texts else (),
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


def _ids_of(path: Path, texts: Sequence[str]) -> tuple[str, ...]:
    """The ids of a JSONL file's texts, as m3-runtime bulk reads them; empty where not one has an id.

    Raises:
        InputError: an id is no string or integer; its line is named.
    """
    if format_of(path.name) is not SourceFormat.JSONL:
        return ()
    rows = []
    for raw in raw_rows(str(path), SourceFormat.JSONL, Columns()):
        row = raw.parsed()
        if isinstance(row, BadRow):
            raise InputError(f"{row.place}: {row.reason}")
        rows.append(row)
    if all(row.id == row.place for row in rows) or len(rows) != len(texts):
        return ()
    first: dict[str, str] = {}
    for row in rows:
        if (place := first.setdefault(row.id, row.place)) != row.place:
            raise InputError(f"{row.place}: the id {row.id!r} is that of {place} too; give each text its own, or none")
    return tuple(first)
