"""`m3-bench run`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m3_bench.cli.commands import Commands
from m3_bench.cli.exit_codes import EXIT_FAILED, EXIT_OK
from m3_bench.cli.shared import add_run_flags, checked_cpus, checked_rounds
from m3_runtime.encode.options import checked_threads
from m3_runtime.errors import InputError

if TYPE_CHECKING:
    from m3_bench.documents import Run
    from m3_bench.run.candidates import Candidate
    from m3_export.progress import Progress
    from m3_runtime import Bundle

DESCRIPTION = """\
Measure every variant of a bundle: vectors of the reference's texts, and each scenario's times, memory and CPU seconds.

Each variant is a process of its own, fresh for every scenario, held to the same CPUs and threads, and asleep while
another runs; they take turns (A B A B …). Loading, the first call and the calls that count are kept apart, and so are
tokenizing, the engine and the rest. Raw values go to FILE after each scenario; the same command goes on where it was
interrupted. Vectors lie beside it, one .safetensors a variant."""

EPILOG = """\
examples:
  m3-bench run bge-m3-cpu --reference a100-fp16.safetensors -o run.json
  m3-bench run bge-m3-cpu --scenarios standard,long --rounds 5 -o run.json
  m3-bench run bge-m3-cpu --variants onnx-int8,openvino-int8 --scenarios my.toml --threads 4 --cpus 0,2,4,6 -o run.json

exit codes: 0 measured; 1 a variant failed in a scenario (the others are kept); 2 usage"""


def add_to(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "run",
        help="times, memory and vectors of a bundle's variants on this machine",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--variants", metavar="NAME,…", help="only these (default: all that this processor runs)")
    add_run_flags(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from m3_export.progress import Progress
    from m3_runtime import Bundle

    progress = Progress(quiet=args.quiet)
    bundle = Bundle.open(args.bundle)
    names = [name.strip() for name in (args.variants or "").split(",") if name.strip()]
    return measure(args, bundle, own_variants(bundle, names, checked_threads(args.threads), progress), progress)


def own_variants(bundle: "Bundle", names: Sequence[str], threads: int, progress: "Progress") -> "list[Candidate]":
    """The variants that can run here; the others are named.

    Raises:
        InputError: there is no such variant, or none can run here.
    """
    from m3_bench.run.candidates import variants_of

    able = []
    for candidate, reason in variants_of(bundle, names, threads):
        if reason:
            progress.say(f"{candidate.name} is left out: {reason}")
        else:
            able.append(candidate)
    if not able:
        raise InputError(f"none of the variants of {str(bundle.folder)!r} can run on this processor")
    return able


def measure(args: argparse.Namespace, bundle: "Bundle", candidates: "Sequence[Candidate]", progress: "Progress") -> int:
    """Run candidates through the scenarios of the command line."""
    from m3_bench.recording import digest_of
    from m3_bench.run.candidates import model_of
    from m3_bench.run.run import Wish, run
    from m3_bench.scenarios import read_scenarios, within
    from m3_bench.texts import TextMaker
    from m3_runtime.tokenizer import M3Tokenizer

    info, geometry = bundle.manifest.tokenizer, bundle.manifest.geometry
    scenarios = read_scenarios(args.scenarios)
    fitting = within(scenarios, geometry.max_tokens)
    if too_long := [one.name for one in scenarios if one not in fitting]:
        progress.say(f"{', '.join(too_long)} left out: the model takes {geometry.max_tokens} tokens")
    texts = _texts(args, bundle)
    threads = checked_threads(args.threads)
    wish = Wish(
        model=model_of(bundle.manifest),
        candidates=tuple(candidates),
        scenarios=fitting,
        texts=texts,
        texts_sha256=digest_of(texts),
        rounds=checked_rounds(args.rounds),
        threads=threads,
        cpus=checked_cpus(args.cpus, threads),
        output=args.output,
    )
    done = run(wish, TextMaker(M3Tokenizer.open(bundle.file(info.path), info)), progress)
    return _tell(done, args.output)


def _texts(args: argparse.Namespace, bundle: "Bundle") -> tuple[str, ...]:
    from m3_bench.recording import read_recording
    from m3_export.calibration.texts import probe_texts, read_texts

    if args.reference is None:
        found = read_texts(args.texts, "texts") if args.texts else probe_texts()
        return tuple(text.text for text in found)
    if args.texts is not None:
        raise InputError("give either --reference, whose texts are taken, or --texts")
    recording = read_recording(args.reference)
    if recording.run.model.space_id != bundle.manifest.space_id:
        raise InputError(
            f"{str(args.reference)!r} is of {recording.run.model.name} ({recording.run.model.space_id}), the bundle of "
            f"{bundle.manifest.source.name} ({bundle.manifest.space_id}): other weights or another tokenizer; record "
            "the bundle's own checkpoint"
        )
    return recording.texts


def _tell(done: "Run", output: Path) -> int:
    from m3_bench.run.table import table

    sys.stdout.write(table(done) + f"\nRaw values: {output}\n")
    is_whole = all(not one.error for contender in done.contenders for one in contender.scenarios)
    return EXIT_OK if is_whole else EXIT_FAILED
