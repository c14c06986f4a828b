"""The command `m3-export`."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import m3_models
from m3_export.checkpoint.languages import parse_languages
from m3_export.errors import OptionsError, OverBudgetError
from m3_export.options import ExportOptions, Target, VariantName, parse_heads, parse_variants
from m3_export.plan.costs import Objective
from m3_export.verify.budget import Budget, ScoreBudget, check_budget
from m3_runtime.bundle.manifest import Pooling
from m3_runtime.cli.arguments import refuse_given
from m3_runtime.cli.ending import run_command
from m3_runtime.cli.interrupt import second_ends_at_once
from m3_runtime.errors import InputError
from m3_runtime.exit_codes import FAILED, INTERRUPTED, OK, OVER_LIMIT, USAGE
from m3_runtime.version import __version__

DESCRIPTION = """\
Turn a BGE-M3 checkpoint, or a reranker of its family, into a verified CPU bundle.

SOURCE is one of
  a folder     BAAI's checkpoint, or what FlagEmbedding's fine-tune writes (checkpoint-N/ too)
  a hub id     BAAI/bge-m3, BAAI/bge-reranker-v2-m3; HF_ENDPOINT and HF_HUB_OFFLINE are honoured
  a name       {names}

Every variant is measured against PyTorch FP32 before the bundle is written. A variant that is over
its budget fails the export (exit code 3) and leaves nothing behind."""

EPILOG = """\
examples:
  m3-export BAAI/bge-m3 bge-m3-cpu
  m3-export ./my-finetune/checkpoint-500 my-bundle --pooling cls
  m3-export BAAI/bge-reranker-v2-m3 reranker-cpu
  m3-export mini-m3 mini-bundle --variants onnx-int8 --json > report.json
  m3-export BAAI/bge-m3 strict-bundle --budget strict
  m3-export BAAI/bge-m3 server-bundle --target vnni       made on a laptop, for a server
  m3-export ./next-checkpoint next --plan bge-m3-cpu/plan.json   the same precisions again, without a search
  m3-export BAAI/bge-m3 small --languages zh,en       without the pieces of other languages
  m3-export mini-m3 mini-checkpoint --checkpoint-only
  m3-export verify-golden bge-m3-cpu        compare with BGE-M3's published numbers

exit codes: 0 done, 1 failed, 2 wrong usage, a wrong input or a missing extra, 3 over budget, 130 interrupted
Ctrl-C waits for what computes, up to a minute with a large model; a second one does not."""

_OF_INT8 = ("budget", "plan", "target", "optimise")
_OF_BUNDLES = (
    "variants", "heads", "pooling", "normalize", "allow_over_budget", "allow_silent_head", "calibration_texts",
    "probe_texts", "revision", *_OF_INT8,
)  # fmt: skip
"""Options without effect where nothing of that kind is made."""

_ENDED_AT_ONCE = "interrupted twice, ended at once; the next export to the same folder removes what is left beside it"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    is_golden = words[:1] == ["verify-golden"]

    def run() -> int:
        try:
            with second_ends_at_once(INTERRUPTED, f"m3-export: {_ENDED_AT_ONCE}"):
                return _verify_golden(_golden_parser().parse_args(words[1:])) if is_golden else _export(words)
        except OverBudgetError as error:
            sys.stderr.write(f"m3-export: {error}\n")
            return OVER_LIMIT

    return run_command(
        "m3-export",
        run,
        memory_remedy="exporting BGE-M3 needs about 9 GB",
        consequence="" if is_golden else ", nothing was written",
        extras_of=lambda _: "export",
    )


def parser() -> argparse.ArgumentParser:
    """The command line of an export."""
    top = argparse.ArgumentParser(
        prog="m3-export",
        description=DESCRIPTION.format(names=", ".join(m3_models.names())),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("source", metavar="SOURCE", help="folder, hub id or name")
    top.add_argument("out", metavar="OUT", type=Path, help="folder of the bundle; must not exist (see --force)")
    top.add_argument("--version", action="version", version=f"m3-export {__version__}")
    top.add_argument("--recipe", type=_no_recipe, help=argparse.SUPPRESS)
    _add_output(top.add_argument_group("what to write"))
    group = top.add_argument_group("how the model pools (default: as the checkpoint's files say, else cls)")
    group.add_argument("--pooling", choices=[p.value for p in Pooling])
    group.add_argument("--normalize", action=argparse.BooleanOptionalAction, help="unit length for dense and ColBERT")
    _add_accuracy(top.add_argument_group("accuracy"))
    _add_vocabulary(top.add_argument_group("vocabulary (default: every piece stays)"))
    _add_planning(top.add_argument_group("planning (which projection runs in which precision)"))
    top.add_argument("--revision", help="branch, tag or commit of a hub source (default: main; the commit is pinned)")
    top.add_argument("--json", action="store_true", help="print the report as JSON on stdout")
    top.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return top


def _no_recipe(_path: str) -> None:
    raise argparse.ArgumentTypeError(
        "recipe files are no longer read; give the same settings as flags (--variants, --heads, --budget …). "
        "The bundle's manifest.json records them"
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--variants",
        type=parse_variants,
        default=tuple(VariantName),
        help="comma-separated: onnx-fp32,onnx-int8,openvino-int8 (default: all three)",
    )
    group.add_argument(
        "--heads",
        type=parse_heads,
        help="of an encoder: 'dense' for a dense-only bundle on purpose (default: dense,sparse,colbert)",
    )
    group.add_argument(
        "--checkpoint-only", action="store_true", help="write the checkpoint of a named model, no bundle"
    )
    group.add_argument("--force", action="store_true", help="replace the bundle at OUT")


def _add_accuracy(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--budget",
        metavar="NAME|NAME=VALUE,…",
        type=check_budget,
        default="balanced",
        help=f"lowest accepted parity: strict, balanced (default: {Budget().to_text().replace(',', ', ')}; of a "
        f"reranker: {ScoreBudget().to_text().replace(',', ', ')}) or fast, figures of your own, or both: "
        "strict,dense_min=0.999",
    )
    group.add_argument(
        "--allow-over-budget", action="store_true", help="write the bundle anyway, and report what is over"
    )
    group.add_argument(
        "--allow-silent-head",
        action="store_true",
        help="export a head that tells no text or token from another, such as lexical weights that are all 0",
    )
    group.add_argument(
        "--calibration-texts", type=Path, metavar="FILE", help="texts to measure ranges on: JSONL, or one text a line"
    )
    group.add_argument(
        "--probe-texts", type=Path, metavar="FILE", help="texts to measure parity on; none may be a calibration text"
    )


def _add_vocabulary(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--languages",
        metavar="CODES",
        type=parse_languages,
        default=(),
        help="zh,en,de: keep only pieces that these languages can spell; token ids stay the same",
    )
    group.add_argument(
        "--vocabulary-from",
        metavar="CORPUS",
        nargs="+",
        default=(),
        help="keep only pieces that your texts have: files as m3-runtime encode reads them",
    )


def _add_planning(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--plan", type=Path, metavar="FILE", help="follow a plan instead of searching: a bundle's plan.json"
    )
    group.add_argument(
        "--target",
        choices=[t.value for t in Target],
        default=Target.HERE.value,
        help="processor to plan for: this machine's, with costs measured here (default), or one with VNNI or AMX, "
        "with recorded costs",
    )
    group.add_argument(
        "--optimise",
        choices=[o.value for o in Objective],
        default=Objective.BALANCED.value,
        help="what the plan is to be fast at: one short query (latency), batches (throughput), or both "
        "(balanced, the default: a query of 16 tokens, or a pair of 64, and a passage of 128 count a quarter each, "
        "16 passages a half)",
    )


def _export(words: Sequence[str]) -> int:
    command_line = parser()
    args = command_line.parse_args(words)
    _check_usage(args, command_line)
    if args.checkpoint_only:
        return _write_checkpoint(args)
    _silence_libraries(quiet=args.quiet)
    from m3_export import report
    from m3_export.pipeline import export
    from m3_runtime.io.progress import Progress

    options = ExportOptions(
        variants=args.variants,
        heads=args.heads,
        pooling=None if args.pooling is None else Pooling(args.pooling),
        normalize=args.normalize,
        budget=args.budget,
        allow_over_budget=args.allow_over_budget,
        allow_silent_head=args.allow_silent_head,
        target=Target(args.target),
        objective=Objective(args.optimise),
        plan=args.plan,
        calibration_texts=args.calibration_texts,
        probe_texts=args.probe_texts,
        languages=args.languages,
        vocabulary_from=tuple(args.vocabulary_from),
    )
    progress = Progress(quiet=args.quiet)
    done = export(args.source, args.out, options, force=args.force, revision=args.revision, progress=progress)
    sys.stdout.write(_json(report.export_json(done)) if args.json else report.export_text(done))
    return OK


def _check_usage(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if args.languages and args.vocabulary_from:
        raise OptionsError("--languages and --vocabulary-from both say which pieces stay; give one of them")
    if not args.checkpoint_only:
        if args.variants == (VariantName.ONNX_FP32,):
            refuse_given(args, parser, _OF_INT8, "is for INT8 variants, and --variants asks for none; leave it out")
        return
    if args.languages or args.vocabulary_from:
        raise OptionsError("--checkpoint-only writes the whole vocabulary; leave --languages and --vocabulary-from out")
    refuse_given(args, parser, _OF_BUNDLES, "is for bundles, and --checkpoint-only writes none; leave it out")
    if not m3_models.is_name(args.source):
        raise InputError(f"--checkpoint-only writes a named model: {', '.join(m3_models.names())}; not {args.source!r}")
    if args.out.exists():
        raise InputError(f"{str(args.out)!r} exists; choose another folder for the checkpoint")


def _write_checkpoint(args: argparse.Namespace) -> int:
    from m3_export.checkpoint.source import write_named
    from m3_runtime.io.progress import Progress

    write_named(args.source, args.out, Progress(quiet=args.quiet).say)
    if args.json:
        sys.stdout.write(json.dumps({"checkpoint": str(args.out), "source": args.source}) + "\n")
    else:
        sys.stdout.write(f"{args.out}: checkpoint {args.source} ({m3_models.describe(args.source)})\n")
    return OK


def _silence_libraries(*, quiet: bool) -> None:
    """Libraries warn about themselves (deprecations, missing torchvision); our errors say what a user can act on."""
    import logging

    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when huggingface_hub is imported, which is later
    warnings.simplefilter("ignore")
    for name in ("torch.onnx", "torch.onnx._internal.exporter._registration", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _golden_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="m3-export verify-golden",
        description="Compare a bundle of the real BAAI/bge-m3 with the numbers that BAAI published.",
        epilog="exit codes: 0 they agree; 1 they do not; 2 wrong usage, or nothing to compare: the bundle is of "
        "another model, damaged or dense-only; 130 interrupted",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a bundle's folder")
    parser.add_argument("--variant", default="onnx-fp32", help="variant to check (default: onnx-fp32)")
    parser.add_argument("--force", action="store_true", help="compare even if the bundle has another name")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON on stdout")
    return parser


def _verify_golden(args: argparse.Namespace) -> int:
    from m3_export.verify import golden

    result = golden.verify_golden(args.bundle, args.variant, force=args.force)
    sys.stdout.write(_json(golden.golden_json(result)) if args.json else golden.golden_text(result))
    if result.skipped is not None:
        return USAGE
    return FAILED if result.failed else OK


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
