"""The export, as one paragraph: checkpoint → graph → variants → parity → bundle."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import m3_models
from m3_export.build_variant import (
    VariantBuilder,
    VariantResult,
    library_errors,
    over_budget_message,
    score_corrections,
    speed_order,
    write_plans,
)
from m3_export.calibration.statistics import (
    ActivationStatistics,
    colbert_moments,
    gather_statistics,
    principal_axes,
)
from m3_export.calibration.texts import ChosenTexts, chosen_texts
from m3_export.checkpoint.folder import Checkpoint, refuse_options_of_encoders
from m3_export.checkpoint.pooling import TRAINING_ARGUMENTS, PoolingChoice
from m3_export.checkpoint.source import Source, is_named, resolve
from m3_export.checkpoint.tokenizer import CheckpointTokenizer
from m3_export.checkpoint.vocabulary import check_corpora
from m3_export.chosen_pieces import ChosenPieces, choose_pieces
from m3_export.errors import CheckpointError, OptionsError, OverBudgetError
from m3_export.export_texts import probe_of, proven, tuning_of
from m3_export.graph import passes
from m3_export.graph.model import M3Model
from m3_export.graph.trace import trace
from m3_export.library_files import write_library_files
from m3_export.options import ExportOptions, Target, VariantName
from m3_export.plan.costs import Objective
from m3_export.plan.losses import limits_of
from m3_export.plan.plan import PrecisionPlan, read_plans
from m3_export.plan.planner import Planner, TuningTexts
from m3_export.plan.simulation import QuantizedModel
from m3_export.quantize.variants import Graphs
from m3_export.verify.budget import AnyBudget, Excess
from m3_export.verify.measure import ParityCheck, ProbeTexts
from m3_export.verify.parity import Outputs
from m3_export.verify.reference import silent_heads, silent_scores
from m3_runtime import M3Encoder, M3Reranker
from m3_runtime.bundle.manifest import Head, Manifest, ModelInfo, SourceInfo, TokenizerInfo
from m3_runtime.bundle.reader import COLBERT_PCA, Bundle
from m3_runtime.bundle.writer import check_target, list_files, publish, staging_folder, write_manifest
from m3_runtime.errors import InputError
from m3_runtime.io.progress import Progress
from m3_runtime.tokenizer import M3Tokenizer

TOOLS = ("torch", "transformers", "tokenizers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Export:
    """A finished export: the bundle, what is over budget, by variant, if that was allowed, and warnings."""

    bundle: Bundle
    excesses: Mapping[str, tuple[Excess, ...]]
    warnings: tuple[str, ...] = ()


def export(
    source: str, out: Path, options: ExportOptions, *, force: bool, revision: str | None, progress: Progress
) -> Export:
    """Turn SOURCE into a verified bundle at `out`; on any error nothing is left there.

    Raises:
        M3Error: the source, checkpoint, tokenizer or target is not what it must be; names the item.
        OverBudgetError: a variant's parity is outside the budget and the options do not allow it.
    """
    check_target(out, force=force)
    _check_arguments(source, out, options)
    texts = _texts(options, progress)
    with staging_folder(out, progress.say) as staging:
        work = staging / ".work"
        work.mkdir()
        found = resolve(source, work, revision=revision, progress=progress.say)
        with progress.step(f"Reading checkpoint {found.name}"):
            checkpoint = Checkpoint.open(
                found.folder, heads=options.heads, pooling=options.pooling, normalize=options.normalize
            )
        budget = _check_kind(options, is_reranker=checkpoint.classifier is not None)
        plans = _given_plans(options, checkpoint)
        warnings = _of_pooling(checkpoint, progress, is_named=found.folder.is_relative_to(work))
        original = CheckpointTokenizer.open(found.folder, checkpoint.geometry.vocab_size)
        _check_padding(checkpoint, original.info)
        whole, chosen = proven(original, checkpoint, texts, staging)
        progress.say(f"Tokenizer: {whole.info.proof}, trailing blanks {whole.info.blank_rule}")
        pieces = choose_pieces(original, whole, checkpoint, chosen, options, staging, progress)
        shutil.copyfile(found.folder / "config.json", staging / "config.json")
        model = _model_info(found, checkpoint, pieces)
        probe = probe_of(checkpoint, pieces.runtime, pieces.texts, progress, has_int8=options.has_int8)
        warnings += _silence(probe.natural, pieces.runtime, options, progress)
        check, tuning = ParityCheck(model, probe, budget), tuning_of(checkpoint, whole, chosen)
        builder = _builder(checkpoint, pieces, tuning, check, staging, options, progress)
        if checkpoint.colbert:
            np.save(staging / COLBERT_PCA, principal_axes(_moments(builder.quantized, tuning, options, progress)))
        results = tuple(builder.build(name, plans.get(name)) for name in options.variants)
        shutil.rmtree(work)
        over = {result.variant.name: result.over for result in results if result.over}
        if over and not options.allow_over_budget:
            raise OverBudgetError(over_budget_message(results))
        write_plans(results, model.geometry, staging)
        write_library_files(staging, model, pieces.tokenizer, checkpoint.prompts)
        manifest = _manifest(model, results, checkpoint.pooling, options, staging, pieces)
        write_manifest(staging, manifest)
        with progress.step("Opening the bundle as a user would, every digest compared"):
            _final_check(staging, is_reranker=model.is_reranker)
        check_target(out, force=force)  # a large export takes minutes: another process may have written there
        publish(staging, out)
    return Export(Bundle(out, manifest), over, warnings)


def _check_arguments(source: str, out: Path, options: ExportOptions) -> None:
    """Refuse what can be refused before a checkpoint is fetched or written.

    Raises:
        InputError: the bundle would replace an input, or a corpus cannot be read.
        OptionsError: an option is for another kind of model than the one that is named.
    """
    _check_inputs_stay(out, source, options.calibration_texts, options.probe_texts, *options.vocabulary_from)
    if is_named(source):
        _check_kind(options, is_reranker=m3_models.is_reranker(source))
    check_corpora(options.vocabulary_from)


def _check_kind(options: ExportOptions, *, is_reranker: bool) -> AnyBudget:
    """The budget, once every option is for a model of this kind.

    Raises:
        OptionsError: one is for the other kind.
    """
    if is_reranker:
        refuse_options_of_encoders(
            {"--heads": options.heads, "--pooling": options.pooling, "--normalize": options.normalize}
        )
        if options.languages or options.vocabulary_from:
            raise OptionsError("--languages and --vocabulary-from are for encoders; a reranker keeps every piece")
    return options.budget_of(is_reranker=is_reranker)


def _given_plans(options: ExportOptions, checkpoint: Checkpoint) -> Mapping[str, PrecisionPlan]:
    """The plans to follow, by variant.

    Raises:
        PlanError: they are for another model.
        OptionsError: an option would change nothing of the bundle; names it, and what it is for.
    """
    plans = read_plans(options.plan, checkpoint.geometry) if options.plan else {}
    int8 = {*options.variants} - {VariantName.ONNX_FP32}
    needs_texts, is_searched = int8 or checkpoint.colbert or options.languages, not int8 <= plans.keys()
    for is_idle, reason in (
        (
            options.calibration_texts and not needs_texts,
            "--calibration-texts is for INT8 variants, ColBERT's principal axes and --languages; none of them is here",
        ),
        (plans and not plans.keys() & int8, f"--plan {options.plan} is of {', '.join(plans)}, not of --variants"),
        (options.target is not Target.HERE and not is_searched, "--target is for a search of plans, and none is made"),
        (
            options.objective is not Objective.BALANCED and not is_searched,
            "--optimise is for a search of plans, and none is made",
        ),
    ):
        if is_idle:
            raise OptionsError(f"{reason}; leave it out")
    return plans


def _of_pooling(checkpoint: Checkpoint, progress: Progress, *, is_named: bool) -> tuple[str, ...]:
    """What the folder's files say against its heads; the models of this project are what they say."""
    found = checkpoint.pooling
    if found.pooling_from == TRAINING_ARGUMENTS:
        length = "unit length" if found.normalize else "not normalized"
        progress.say(f"Pooling {found.pooling.value}, {length}, as {TRAINING_ARGUMENTS} says")
    warning = found.warning if checkpoint.sparse and not is_named else None
    if warning is None:
        return ()
    progress.say(f"WARNING: {warning}")
    return (warning,)


def _silence(probe: ProbeTexts, tokenizer: M3Tokenizer, options: ExportOptions, progress: Progress) -> tuple[str, ...]:
    """What the reference's silent heads give; before parity is measured, of which silence would pass as perfect.

    Raises:
        CheckpointError: there is one, and the options do not allow it.
    """
    if isinstance(probe.reference, Outputs):
        silent = silent_heads(probe.reference, probe.ids, tokenizer.info.unused_ids)
    else:
        silent = silent_scores(probe.reference.pooled)
    if silent and not options.allow_silent_head:
        is_dense_spared = not silent.keys() & {Head.DENSE, Head.SCORE}
        dense_only = " For a dense-only bundle pass --heads dense." if is_dense_spared else ""
        raise CheckpointError(
            f"{'; '.join(silent.values())}: the training run has failed, use an earlier checkpoint.{dense_only} "
            "To export it as it is pass --allow-silent-head"
        )
    for warning in silent.values():
        progress.say(f"WARNING: {warning}")
    return tuple(silent.values())


def _check_inputs_stay(out: Path, *inputs: str | Path | None) -> None:
    """Refuse a target that holds an input, which would be gone when the bundle takes its place."""
    for name in inputs:
        if name is None or not out.exists() or not Path(name).exists():
            continue
        path = Path(name).resolve()
        if any(folder.samefile(out) for folder in (path, *path.parents)):
            raise InputError(f"{str(name)!r} is in {str(out)!r}, which the bundle would replace; choose another folder")


def _texts(options: ExportOptions, progress: Progress) -> ChosenTexts:
    texts = chosen_texts(options.calibration_texts, options.probe_texts)
    for warning in texts.warnings:
        progress.say(f"WARNING: {warning}")
    return texts


def _check_padding(checkpoint: Checkpoint, info: TokenizerInfo) -> None:
    """The graph counts positions by config.json's pad id, batches are padded with the tokenizer's."""
    if checkpoint.pad_id != info.pad_id:
        raise CheckpointError(
            f"config.json: pad_token_id is {checkpoint.pad_id}, the tokenizer's {info.pad_id}; "
            "tokenizer and weights belong to different models"
        )


def _model_info(found: Source, checkpoint: Checkpoint, pieces: ChosenPieces) -> ModelInfo:
    weights = checkpoint.weights_sha256()
    return ModelInfo(
        space_id=pieces.space_id(checkpoint.space_id(weights, pieces.tokenizer.ids_sha256)),
        source=SourceInfo(found.name, found.revision, weights, checkpoint.files()),
        geometry=checkpoint.geometry,
        heads=checkpoint.heads,
        pooling=checkpoint.pooling.pooling,
        normalize=checkpoint.pooling.normalize,
        tokenizer=pieces.runtime.info,
    )


def _builder(
    checkpoint: Checkpoint,
    pieces: ChosenPieces,
    tuning: TuningTexts,
    check: ParityCheck,
    staging: Path,
    options: ExportOptions,
    progress: Progress,
) -> VariantBuilder:
    """The model, its graph, and its activation statistics: what variants are made of.

    Only INT8 and ColBERT's principal axes need statistics. They are those of the model with all its pieces: without
    some of them the same plan gives the same integers.
    """
    model = M3Model(checkpoint, pieces.runtime.info.unused_ids)

    def gather() -> ActivationStatistics:
        title = f"Activation statistics of {len(tuning.ranges)} calibration {'pairs' if model.classifier else 'texts'}"
        with progress.step(title), library_errors("gathering activation statistics"):
            return gather_statistics(
                model, tuning.ranges, lambda rows: progress.bar(rows, "calibration"), tuning.natural
            )

    quantized = QuantizedModel(model, gather)
    with progress.step("Tracing the graph"), library_errors("tracing the graph"):
        fewer = model if pieces.kept is None else M3Model(checkpoint, model.unused_ids, pieces.kept.ids)
        graphs = Graphs(passes.portable(trace(fewer)), staging / ".work")
    planner = Planner(quantized, tuning, check.model.geometry, limits_of(check.budget), options, progress)
    natural = tuning.ranges[: tuning.natural]
    return VariantBuilder(graphs, quantized, natural, planner, check, staging, options, progress)


def _moments(
    quantized: QuantizedModel, tuning: TuningTexts, options: ExportOptions, progress: Progress
) -> NDArray[np.float64]:
    """Second moments of ColBERT rows (C, C): INT8's statistics have them, else they are all that is gathered."""
    if options.has_int8:
        assert quantized.statistics.colbert_moments is not None
        return quantized.statistics.colbert_moments
    with progress.step(f"ColBERT rows of {tuning.natural} calibration texts"), library_errors("computing ColBERT rows"):
        return colbert_moments(
            quantized.model, tuning.ranges, lambda rows: progress.bar(rows, "calibration"), tuning.natural
        )


def _manifest(
    model: ModelInfo,
    results: Sequence[VariantResult],
    pooling: PoolingChoice,
    options: ExportOptions,
    staging: Path,
    pieces: ChosenPieces,
) -> Manifest:
    """Everything that is known of a finished bundle; all its other files have been written."""
    return Manifest(
        **vars(model),
        variants=tuple(result.variant for result in results),
        parity={result.variant.name: result.parity for result in results},
        over_budget={result.variant.name: tuple(map(str, result.over)) for result in results if result.over},
        files=list_files(staging),
        recipe={
            "budget": options.budget_of(is_reranker=model.is_reranker).to_text(),
            "target": options.target.value,
            "objective": options.objective.value,
            "plan": "given" if options.plan else "measured",
            "pooling_from": pooling.pooling_from,
            "normalize_from": pooling.normalize_from,
            **speed_order(results, options.objective),
            **score_corrections(results),
        },
        tools={name: metadata.version(name) for name in TOOLS},
        vocabulary=pieces.vocabulary(model.space_id),
    )


def _final_check(staging: Path, *, is_reranker: bool) -> None:
    if is_reranker:
        with M3Reranker.open(staging, verify="full") as reranker:
            reranker.compute_score([("What is BGE M3?", "An embedding model.")])
        return
    with M3Encoder.open(staging, verify="full") as encoder:
        encoder.encode(["What is BGE M3?"])
