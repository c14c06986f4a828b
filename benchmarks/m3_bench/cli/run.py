"""`m3-bench run`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m3_bench.cli.commands import Commands
from m3_bench.cli.exit_codes import EXIT_FAILED, EXIT_OK
from m3_bench.cli.shared import add_run_flags, checked_cpus, checked_rounds
from m3_runtime.encode.options import checked_threads
from m3_runtime.errors import InputError

if TYPE_CHECKING:
    from m3_bench.documents import Run
    from m3_bench.run.contenders import ContenderSpec
    from m3_bench.run.results import Evaluation
    from m3_bench.scenarios import Plan
    from m3_export.progress import Progress
    from m3_runtime import Bundle

FULL_SIZE = 1024  # hidden values of BGE-M3; smaller models have limits of their own

DESCRIPTION = """\
Measure every variant of a bundle: vectors of the reference's texts, and each scenario's times, memory and CPU seconds.

Each variant is a process of its own, fresh for every scenario, held to the same CPUs and threads, and asleep while
another runs; they take turns (A B A B …). Loading, the first call and the calls that count are kept apart, and so are
tokenizing, the engine and the rest. Raw values go to FILE after each scenario; the same command goes on where it was
interrupted. Vectors lie beside it, one .safetensors a variant.

Scenario files may hold targets too: figures to reach, which are printed as a table. `targets` has this project's,
`regret` compares the bundle's plan with the plans of other bundles (--plans)."""

EPILOG = """\
examples:
  m3-bench run bge-m3-cpu --reference a100-fp16.safetensors -o run.json
  m3-bench run bge-m3-cpu --scenarios standard,long --rounds 5 -o run.json
  m3-bench run bge-m3-cpu --variants onnx-int8,openvino-int8 --scenarios my.toml --threads 4 --cpus 0,2,4,6 -o run.json
  m3-bench run out/large-balanced --scenarios targets --targets ceiling,mixed,packed,processes -o targets.json
  m3-bench run out/large-balanced --scenarios regret --plans out/all-static,out/all-dynamic -o regret.json

exit codes: 0 measured, whether targets are reached or not; 1 something could not be measured (the rest is kept);
2 usage"""


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
    parser.add_argument(
        "--plans",
        metavar="BUNDLE,…",
        help="other bundles of the same weights (m3-export --plan FILE --allow-over-budget), for regret",
    )
    add_targets(parser)
    add_run_flags(parser)
    parser.set_defaults(run=_run)


def add_targets(parser: argparse.ArgumentParser) -> None:
    """`--targets`."""
    parser.add_argument("--targets", metavar="NAME,…", help="of the scenario files: only what these need is measured")


def names_of(words: str | None) -> list[str]:
    """A list on the command line, taken apart."""
    return [name.strip() for name in (words or "").split(",") if name.strip()]


def _run(args: argparse.Namespace) -> int:
    from m3_bench.run.contenders import FP32, variants_of_plans
    from m3_export.progress import Progress
    from m3_runtime import Bundle

    progress, threads = Progress(quiet=args.quiet), checked_threads(args.threads)
    bundle = Bundle.open(args.bundle)
    plan = plan_of(args, bundle, progress)
    names, plans = names_of(args.variants), [Path(name) for name in names_of(args.plans)]
    if plans and names:
        names.append(FP32)  # whose vectors the others are compared with
    variants = own_variants(bundle, names, plan, threads, progress)
    contenders = [*variants, *variants_of_plans(bundle, plans, threads)]
    return measure(args, bundle, plan, contenders, {}, progress)


def plan_of(args: argparse.Namespace, bundle: "Bundle", progress: "Progress") -> "Plan":
    """The scenarios and targets of the command line, those that the model can take."""
    from m3_bench.scenarios import read_plan

    plan, max_tokens = read_plan(args.scenarios).only(names_of(args.targets)), bundle.manifest.geometry.max_tokens
    fitting = plan.within(max_tokens)
    names = {one.name for one in fitting.scenarios}
    if too_long := [one.name for one in plan.scenarios if one.name not in names]:
        progress.say(f"{', '.join(too_long)} left out: the model takes {max_tokens} tokens")
    return fitting


def own_variants(
    bundle: "Bundle", names: Sequence[str], plan: "Plan", threads: int, progress: "Progress"
) -> "list[ContenderSpec]":
    """The variants that can run here and are asked for something; those that cannot run are named.

    Raises:
        InputError: there is no such variant, or none can run here.
    """
    from m3_bench.run.contenders import asked_keys, variants_of

    able = []
    for contender, reason in variants_of(bundle, names, threads):
        if reason:
            progress.say(f"{contender.name} is left out: {reason}")
        elif contender.key in asked_keys(plan.scenarios, bundle, [contender.key]):
            able.append(contender)
    if not able:
        raise InputError(f"none of the variants of {str(bundle.folder)!r} can run on this processor")
    return able


def measure(
    args: argparse.Namespace,
    bundle: "Bundle",
    plan: "Plan",
    contenders: "Sequence[ContenderSpec]",
    absent: Mapping[str, str],
    progress: "Progress",
) -> int:
    """Run contenders through the scenarios; `absent` says by key why others are not there."""
    from m3_bench.recording import digest_of
    from m3_bench.run.contenders import keyed, model_of, products_of, resolved
    from m3_bench.run.results import Evaluation
    from m3_bench.run.run import RunSpec, run
    from m3_bench.scenarios import ProcessorClass
    from m3_bench.texts import TextMaker
    from m3_runtime.cpu import cpu_info
    from m3_runtime.tokenizer import M3Tokenizer

    threads, texts = checked_threads(args.threads), _texts(args, bundle)
    products, missing = products_of(plan.scenarios, threads)
    everybody = (*contenders, *products)
    names = keyed(everybody, bundle)
    spec = RunSpec(
        model=model_of(bundle.manifest),
        contenders=everybody,
        scenarios=resolved(plan.scenarios, names),
        texts=texts,
        texts_sha256=digest_of(texts),
        rounds=checked_rounds(args.rounds),
        threads=threads,
        cpus=checked_cpus(args.cpus, threads),
        output=args.output,
    )
    info = bundle.manifest.tokenizer
    done = run(spec, TextMaker(M3Tokenizer.open(bundle.file(info.path), info)), progress)
    over = _over_budget(args, done, everybody)
    evaluation = Evaluation(
        run=done,
        names=names,
        absent={**absent, **missing},
        over_budget=over,
        processor=ProcessorClass.of(cpu_info()),
        is_small_model=bundle.manifest.geometry.hidden_size < FULL_SIZE,
    )
    return _print(plan, evaluation, args.output)


def _texts(args: argparse.Namespace, bundle: "Bundle") -> tuple[str, ...]:
    from m3_bench.recording import read_recording
    from m3_export.calibration.texts import probe_texts, read_texts

    if getattr(args, "plans", None):
        if args.reference is not None:
            raise InputError("give either --reference or --plans: plans are held to texts that no plan was made on")
        from m3_bench.run.budget import unseen_texts

        return unseen_texts(args.texts)
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


def _over_budget(
    args: argparse.Namespace, done: "Run", contenders: "Sequence[ContenderSpec]"
) -> Mapping[str, tuple[str, ...]]:
    """What of each plan is over budget, where plans are given."""
    if not getattr(args, "plans", None):
        return {}
    from m3_bench.run.budget import over_budget

    return over_budget(done, {contender.name: contender for contender in contenders}, args.output.parent)


def _print(plan: "Plan", evaluation: "Evaluation", output: Path) -> int:
    """The table of targets, if there are any, and that of the run; the exit code."""
    from m3_bench.run.results import run_table, target_table

    done, is_whole = evaluation.run, True
    if plan.targets:
        table, is_whole = target_table(plan.targets, evaluation)
        about = f"{done.machine.cpu} ({evaluation.processor}), {done.threads} threads; {done.model.name}"
        sys.stdout.write(f"{about}\n\n{table}\n\n")
    sys.stdout.write(run_table(done) + f"\nRaw values: {output}\n")
    has_failed = any(one.error for contender in done.contenders for one in contender.scenarios)
    return EXIT_OK if is_whole and not has_failed else EXIT_FAILED
