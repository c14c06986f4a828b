"""The command `m3-export`."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import m3_models
from m3_export.errors import OverBudgetError
from m3_export.plan.costs import Objective
from m3_export.recipe import Target
from m3_runtime.bundle.manifest import Pooling
from m3_runtime.errors import InputError, M3Error
from m3_runtime.version import __version__

if TYPE_CHECKING:
    from m3_export.recipe import Recipe

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_OVER_BUDGET = 0, 1, 2, 3

DESCRIPTION = """\
Turn a BGE-M3 checkpoint into a verified CPU bundle.

SOURCE is one of
  a folder     BAAI's checkpoint, or what FlagEmbedding's fine-tune writes (checkpoint-N/ too)
  a hub id     BAAI/bge-m3, for instance; HF_ENDPOINT and HF_HUB_OFFLINE are honoured
  a name       {names}

Every variant is measured against PyTorch FP32 before the bundle is written. A variant that is over
its budget fails the export (exit code 3) and leaves nothing behind."""

EPILOG = """\
examples:
  m3-export BAAI/bge-m3 bge-m3-cpu
  m3-export ./my-finetune/checkpoint-500 my-bundle --pooling cls
  m3-export mini-m3 mini-bundle --variants onnx-int8 --json > report.json
  m3-export BAAI/bge-m3 strict-bundle --budget strict
  m3-export BAAI/bge-m3 server-bundle --target vnni       made on a laptop, for a server
  m3-export ./next-checkpoint next --plan bge-m3-cpu/plan.json   the same precisions again, without a search
  m3-export mini-m3 mini-checkpoint --checkpoint-only
  m3-export verify-golden bge-m3-cpu        compare with BGE-M3's published numbers

exit codes: 0 done, 1 failed, 2 usage, 3 over budget"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["verify-golden"]:
            return _verify_golden(_golden_parser().parse_args(words[1:]))
        return _export(_parser().parse_args(words))
    except (M3Error, OSError, MemoryError, KeyboardInterrupt, ModuleNotFoundError) as error:
        message, code = _failure(error)
        sys.stderr.write(f"m3-export: {message}\n")
        return code


def _failure(error: BaseException) -> tuple[str, int]:
    """What to say, and the exit code."""
    match error:
        case OverBudgetError():
            return str(error), EXIT_OVER_BUDGET
        case InputError():
            return str(error), EXIT_USAGE
        case OSError():
            return f"{error.filename or 'file system'}: {error.strerror or error}; nothing was written", EXIT_FAILED
        case ModuleNotFoundError():
            return f'{error.name} is not installed; exporting needs: pip install "m3-runtime[export]"', EXIT_USAGE
        case MemoryError():
            return "out of memory, nothing was written; exporting BGE-M3 needs about 9 GB", EXIT_FAILED
        case KeyboardInterrupt():
            return "interrupted, nothing was written", EXIT_FAILED
    return str(error), EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="m3-export",
        description=DESCRIPTION.format(names=", ".join(m3_models.names())),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"m3-export {__version__}")
    parser.add_argument("source", metavar="SOURCE", help="folder, hub id or name")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the bundle; must not exist (see --force)")
    wish = parser.add_argument_group("what to write")
    wish.add_argument("--variants", help="comma-separated: onnx-fp32,onnx-int8,openvino-int8 (default: all three)")
    wish.add_argument("--heads", help="'dense' for a dense-only bundle on purpose (default: dense,sparse,colbert)")
    wish.add_argument("--recipe", type=Path, metavar="FILE", help="TOML with the same words; flags win over it")
    wish.add_argument("--checkpoint-only", action="store_true", help="write the checkpoint of a named model, no bundle")
    wish.add_argument("--force", action="store_true", help="replace a bundle that is at OUT already")
    how = parser.add_argument_group("how the model pools (default: sentence-transformers files, else cls, normalised)")
    how.add_argument("--pooling", choices=[p.value for p in Pooling])
    how.add_argument("--normalize", action=argparse.BooleanOptionalAction, help="unit length for dense and ColBERT")
    accuracy = parser.add_argument_group("accuracy")
    accuracy.add_argument(
        "--budget",
        metavar="NAME|NAME=VALUE,…",
        help="lowest accepted parity: strict, balanced (default: dense_mean=0.9993, dense_min=0.998, colbert_p5=0.996, "
        "sparse_jaccard=0.98, degenerate_share=0.005) or fast, figures of your own, or both: strict,dense_min=0.999",
    )
    accuracy.add_argument("--allow-over-budget", action="store_true", help="write the bundle all the same, and say so")
    accuracy.add_argument(
        "--calibration-texts", type=Path, metavar="FILE", help="what ranges are measured on: JSONL or lines"
    )
    accuracy.add_argument("--probe-texts", type=Path, metavar="FILE", help="what parity is measured on; other texts")
    planning = parser.add_argument_group("planning (which projection runs in which precision)")
    planning.add_argument(
        "--plan", type=Path, metavar="FILE", help="follow a plan instead of searching: a bundle's plan.json"
    )
    planning.add_argument(
        "--target",
        choices=[t.value for t in Target],
        help="processor to plan for: this machine's, with costs measured here (default), or one with VNNI or AMX, "
        "with recorded costs",
    )
    planning.add_argument(
        "--optimise",
        choices=[o.value for o in Objective],
        help="what the plan is to be fast at: one short query (latency), batches (throughput), or both "
        "(balanced, the default: a query of 16 tokens and a passage of 128 count a quarter each, 16 passages a half)",
    )
    parser.add_argument(
        "--revision", help="branch, tag or commit of a hub source (default: main; the commit is pinned)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def _export(args: argparse.Namespace) -> int:
    source = str(args.source)
    _check_usage(args, source)
    if args.checkpoint_only:
        return _write_checkpoint(args, source)
    _silence_libraries(quiet=args.quiet)
    from m3_export import report
    from m3_export.pipeline import export
    from m3_export.progress import Progress

    recipe = _recipe(args)
    progress = Progress(quiet=args.quiet)
    done = export(source, args.out, recipe, force=args.force, revision=args.revision, progress=progress)
    if args.json:
        sys.stdout.write(json.dumps(report.as_json(done), indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(report.as_text(done))
    return EXIT_OK


def _check_usage(args: argparse.Namespace, source: str) -> None:
    if args.checkpoint_only and not m3_models.is_name(source):
        raise InputError(f"--checkpoint-only writes a named model: {', '.join(m3_models.names())}; not {source!r}")
    if args.checkpoint_only and args.out.exists():
        raise InputError(f"{str(args.out)!r} exists; choose another folder for the checkpoint")


def _write_checkpoint(args: argparse.Namespace, source: str) -> int:
    from m3_export.checkpoint.source import write_named
    from m3_export.progress import Progress

    write_named(source, args.out, Progress(quiet=args.quiet).say)
    if args.json:
        sys.stdout.write(json.dumps({"checkpoint": str(args.out), "source": source}) + "\n")
    else:
        sys.stdout.write(f"{args.out}: checkpoint {source} ({m3_models.describe(source)})\n")
    return EXIT_OK


def _recipe(args: argparse.Namespace) -> "Recipe":
    from m3_export.errors import RecipeError
    from m3_export.recipe import Recipe, parse_heads, parse_variants
    from m3_export.verify.budget import Budget

    try:
        recipe = Recipe.from_toml(args.recipe) if args.recipe else Recipe()
        if args.variants is not None:
            recipe = replace(recipe, variants=parse_variants(args.variants))
        if args.heads is not None:
            recipe = replace(recipe, heads=parse_heads(args.heads))
        if args.budget is not None:
            recipe = replace(recipe, budget=Budget.parse(args.budget))
    except RecipeError as error:
        raise InputError(str(error)) from error
    return replace(
        recipe,
        pooling=recipe.pooling if args.pooling is None else Pooling(args.pooling),
        normalize=recipe.normalize if args.normalize is None else args.normalize,
        allow_over_budget=recipe.allow_over_budget or args.allow_over_budget,
        target=recipe.target if args.target is None else Target(args.target),
        objective=recipe.objective if args.optimise is None else Objective(args.optimise),
        plan=args.plan or recipe.plan,
        calibration_texts=args.calibration_texts or recipe.calibration_texts,
        probe_texts=args.probe_texts or recipe.probe_texts,
    )


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
        description="Compare a bundle of the real BAAI/bge-m3 with the numbers that its makers published.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--variant", default="onnx-fp32", help="variant to check (default: onnx-fp32)")
    parser.add_argument("--force", action="store_true", help="compare although the bundle goes by another name")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON on stdout")
    return parser


def _verify_golden(args: argparse.Namespace) -> int:
    from m3_export.verify import golden

    result = golden.verify(args.bundle, args.variant, force=args.force)
    sys.stdout.write(json.dumps(golden.as_json(result), indent=2) + "\n" if args.json else golden.as_text(result))
    return EXIT_FAILED if result.failed else EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
