"""What `m3-bench run` and `m3-bench peers` do, between the parsed command line and the printed tables."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from m3_bench.documents import Run
from m3_bench.peers.environments import PeerSource
from m3_bench.peers.models import Setup, check_source
from m3_bench.recording import read_recording
from m3_bench.run.budget import UnseenPairs, over_budget, rerankers_over_budget, unseen_texts
from m3_bench.run.contenders import (
    FP32,
    ContenderSpec,
    asked_keys,
    auto_variant,
    encoder_beside,
    model_of,
    products_of,
    variants_of,
    variants_of_plans,
)
from m3_bench.run.peers import peer_contenders, peers_of
from m3_bench.run.results import Evaluation, OverBudget, run_table, target_table
from m3_bench.run.run import RunSpec, run
from m3_bench.run.turns import resolved
from m3_bench.scenarios import NO_TIMES, Plan, ProcessorClass, read_plan, scenarios_in
from m3_bench.texts import TextMaker
from m3_export.calibration.texts import probe_texts, read_texts
from m3_runtime import Bundle
from m3_runtime.bundle.space import full_space_of
from m3_runtime.cli.arguments import refuse_given
from m3_runtime.cpu import cpu_info
from m3_runtime.errors import InputError
from m3_runtime.io.progress import Progress
from m3_runtime.opened_model import open_tokenizer

Judge: TypeAlias = Callable[[Run, Mapping[str, ContenderSpec]], OverBudget]
FULL_SIZE = 1024  # hidden values of BGE-M3; smaller models have limits of their own


@dataclass(frozen=True)
class _Opened:
    """A command line whose bundle is open and whose scenarios are read."""

    args: argparse.Namespace
    bundle: Bundle
    plan: Plan
    encoder: ContenderSpec | None  # beside a reranker
    progress: Progress

    @classmethod
    def of(cls, args: argparse.Namespace) -> "_Opened":
        progress, bundle = Progress(quiet=args.quiet), Bundle.open(args.bundle)
        encoder = None if args.encoder is None else encoder_beside(bundle, args.encoder, args.threads)
        asked, max_tokens = read_plan(args.scenarios), bundle.manifest.geometry.max_tokens
        own = [head.value for head in bundle.manifest.heads]
        able = asked.within(max_tokens).for_heads(own, encoder.heads if encoder else ())
        if left := asked.names - able.names:
            reason = f"{str(args.bundle)!r} takes {max_tokens} tokens and gives {', '.join(own)}"
            if whole := [word for word in args.scenarios if word != NO_TIMES and scenarios_in(word) <= left]:
                other = "reranker" if bundle.manifest.is_reranker else "quick"
                raise InputError(f"--scenarios {whole[0]}: nothing there can be measured, as {reason}; try {other}")
            progress.say(f"{', '.join(sorted(left))} left out: {reason}")
        plan = able.only(args.targets).with_auto(auto_variant(bundle))
        return cls(args, bundle, plan, encoder, progress)

    def variants(self, names: Sequence[str]) -> Iterator[ContenderSpec]:
        """The bundle's variants that run here and are asked for something; those that cannot run are named."""
        for contender, reason in variants_of(self.bundle, names, self.args.threads):
            if reason:
                self.progress.say(f"{contender.name} is left out: {reason}")
            elif not self.plan.scenarios or contender.key in asked_keys(self.plan.scenarios, [contender.key]):
                yield contender


def run_variants(args: argparse.Namespace) -> bool:
    """`m3-bench run`: a bundle's variants, and those of other plans. Whether everything could be measured."""
    opened = _Opened.of(args)
    plans = [Path(name) for name in args.plans]
    # plans are compared with what FP32 gives
    names = [*args.variants, FP32] if plans and args.variants else args.variants
    if plans and args.reference is not None:
        raise InputError("give either --reference or --plans: plans are held to texts that no plan was made on")
    variants = list(opened.variants(names))
    if plans and FP32 not in {one.name for one in variants}:
        raise InputError(
            f"--plans: they are held to {FP32}, which {str(args.bundle)!r} lacks here: export it, or give it a scenario"
        )
    others = variants_of_plans(opened.bundle, {one.name for one in variants}, plans, args.threads)
    if not plans:
        return _measure(opened, _texts(opened), variants, {})
    everybody, folder = [*variants, *others], args.output.parent
    if opened.bundle.manifest.is_reranker:
        pairs = UnseenPairs.of(args.texts)
        return _measure(
            opened, pairs.texts, everybody, {}, lambda _, specs: rerankers_over_budget(specs, pairs, args.threads)
        )
    texts = unseen_texts(args.texts)
    return _measure(opened, texts, everybody, {}, lambda run, specs: over_budget(run, specs, folder))


def run_peers(args: argparse.Namespace) -> bool:
    """`m3-bench peers`: a bundle's variants beside others. Whether everything could be measured."""
    opened = _Opened.of(args)
    check_source(args.checkpoint, opened.bundle.manifest.source)
    setup = Setup(
        bundle=opened.bundle,
        checkpoint=args.checkpoint,
        work=args.work / "peer-models",
        peers=PeerSource(args.work / "peers", None if args.torch is None else tuple(args.torch.split())),
        threads=args.threads,
        progress=opened.progress,
    )
    texts, contenders = _texts(opened), list(opened.variants(args.variants))
    asked = asked_keys(opened.plan.scenarios, peers_of(opened.bundle))
    chosen = args.peers or [key for key in peers_of(opened.bundle) if key in asked]
    absent = {}
    for key, contender, reason in peer_contenders(chosen, setup, is_chosen=bool(args.peers)):
        if contender is None:
            opened.progress.say(f"{key} is left out: {reason}")
            absent[key] = reason
        else:
            contenders.append(contender)
    return _measure(opened, texts, contenders, absent)


def _texts(opened: _Opened) -> tuple[str, ...]:
    """The texts whose vectors are kept.

    Raises:
        InputError: they are given, and nobody has vectors; twice; or they are of another checkpoint.
    """
    args, bundle = opened.args, opened.bundle
    if bundle.manifest.is_reranker and opened.encoder is None:
        refuse_given(args, args.command_parser, ("texts", "reference"), "is for vectors, and a reranker has none")
    if args.reference is None:
        found = read_texts(args.texts, "texts") if args.texts else probe_texts()
        return tuple(text.text for text in found)
    if args.texts is not None:
        raise InputError("give either --reference, whose texts are taken, or --texts")
    recording = read_recording(args.reference)
    if full_space_of(recording.run.model.space_id) != full_space_of(bundle.manifest.space_id):
        raise InputError(
            f"{str(args.reference)!r} is of {recording.run.model.name} ({recording.run.model.space_id}), the bundle of "
            f"{bundle.manifest.source.name} ({bundle.manifest.space_id}): other weights or another tokenizer; record "
            "the bundle's own checkpoint"
        )
    return recording.texts


def _measure(
    opened: _Opened,
    texts: tuple[str, ...],
    contenders: Sequence[ContenderSpec],
    absent: Mapping[str, str],
    judge: Judge | None = None,
) -> bool:
    """Run contenders through the scenarios and print.

    Args:
        opened: the command line.
        texts: whose vectors are kept.
        contenders: who runs.
        absent: why others are not there, by key.
        judge: says what of the plans is over budget; None where none are compared.
    """
    args, bundle, plan = opened.args, opened.bundle, opened.plan
    if not contenders:
        raise InputError(f"none of the variants of {str(bundle.folder)!r} is asked for and can run on this processor")
    products, missing = products_of(plan.scenarios, args.threads)
    contenders = (*contenders, *([opened.encoder] if opened.encoder else []), *products)
    names = {one.key: one.name for one in contenders}
    scenarios = resolved(plan.scenarios, contenders)
    if gone := plan.names - {one.name for one in scenarios}:
        reason = f"{', '.join(sorted(gone))} left out: none of the contenders is asked for anything there"
        if not scenarios:
            raise InputError(reason)
        opened.progress.say(reason)
    spec = RunSpec(
        model=model_of(bundle.manifest),
        contenders=contenders,
        scenarios=scenarios,
        texts=texts,
        rounds=args.rounds,
        threads=args.threads,
        output=args.output,
    )
    done = run(spec, TextMaker(open_tokenizer(bundle)), opened.progress)
    is_whole = True
    if plan.targets:
        over = judge(done, {one.name: one for one in contenders}) if judge else {}
        is_small, processor = bundle.manifest.geometry.hidden_size < FULL_SIZE, ProcessorClass.of(cpu_info())
        evaluation = Evaluation(done, names, {**absent, **missing}, over, processor, is_small)
        table, is_whole = target_table(plan.targets, evaluation)
        sys.stdout.write(f"{done.machine.cpu} ({processor}), {done.threads} threads; {done.model.name}\n\n{table}\n\n")
    sys.stdout.write(run_table(done) + f"\nRaw values: {args.output}\n")
    has_failed = any(one.error for contender in done.contenders for one in contender.scenarios)
    return is_whole and not has_failed
