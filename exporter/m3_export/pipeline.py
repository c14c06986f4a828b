"""The export, as one paragraph: checkpoint → graph → variants → parity → bundle."""

import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_export.calibration import statistics as calibration
from m3_export.calibration.texts import ChosenTexts, chosen_texts, digest
from m3_export.calibration.texts.text import Text
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.source import Source, resolve
from m3_export.checkpoint.tokenizer import CheckpointTokenizer, prove_same_ids
from m3_export.errors import CheckpointError, OverBudgetError
from m3_export.graph import passes
from m3_export.graph.model import M3Model
from m3_export.graph.trace import trace
from m3_export.library_files import write_library_files
from m3_export.plan.plan import read_plans
from m3_export.plan.planner import Planner, TuningTexts
from m3_export.plan.simulation import QuantizedModel
from m3_export.progress import Progress
from m3_export.quantize.variants import Graphs
from m3_export.recipe import Recipe
from m3_export.settle import Settled, Workshop, keep_plans, over_budget_message, speed_order, translated
from m3_export.space_id import space_id_of
from m3_export.verify import measure as verify
from m3_export.verify.budget import Excess
from m3_export.verify.reference import reference_outputs
from m3_runtime import M3Encoder
from m3_runtime.bundle.manifest import Head, Manifest, SourceInfo, TokenizerInfo
from m3_runtime.bundle.reader import Bundle
from m3_runtime.bundle.writer import check_target, list_files, publish, staging_folder, write_manifest
from m3_runtime.cpu import cpu_info, default_threads
from m3_runtime.tokenizer import M3Tokenizer

Ids = NDArray[np.int32]
TOOLS = ("torch", "transformers", "tokenizers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Export:
    """A finished export: the bundle, what is over budget if that was allowed, and how each variant came about."""

    bundle: Bundle
    excesses: Mapping[str, tuple[Excess, ...]]
    settled: tuple[Settled, ...]


def export(source: str, out: Path, recipe: Recipe, *, force: bool, revision: str | None, progress: Progress) -> Export:
    """Turn SOURCE into a verified bundle at `out`; on any error nothing is left there.

    Raises:
        M3Error: the source, checkpoint, tokenizer or target is not what it must be; names the item.
        OverBudgetError: a variant's parity is outside the budget and the recipe does not allow it.
    """
    check_target(out, force=force)
    with staging_folder(out) as staging:
        work = staging / ".work"
        work.mkdir()
        found = resolve(source, work, revision=revision, progress=progress.say)
        with progress.step(f"Reading checkpoint {found.name}"):
            checkpoint = Checkpoint.open(found.folder, recipe)
        tokenizer = CheckpointTokenizer.open(found.folder, checkpoint.geometry.vocab_size)
        _check_padding(checkpoint, tokenizer.info)
        texts = chosen_texts(recipe.calibration_texts, recipe.probe_texts)
        for warning in texts.warnings:
            progress.say(f"WARNING: {warning}")
        tokenizer_info = prove_same_ids(tokenizer, tuple(text.text for text in texts.probe))
        tokenizer.save(staging)
        shutil.copyfile(found.folder / "config.json", staging / "config.json")
        progress.say(f"Tokenizer: {tokenizer_info.proof}, trailing blanks {tokenizer_info.blank_rule}")
        encoding = M3Tokenizer.open(staging / tokenizer_info.path, tokenizer_info)
        probe = _probe(checkpoint, tokenizer_info, encoding, texts, progress)
        draft = _describe(found, checkpoint, tokenizer_info, tokenizer.ids_sha256, recipe)
        workshop = _workshop(checkpoint, encoding, texts, draft, probe, staging, recipe, progress)
        del checkpoint
        settled = tuple(workshop.settle(name) for name in recipe.variants)
        shutil.rmtree(work)
        over = {found.variant.name: found.over for found in settled if found.over}
        if over and not recipe.allow_over_budget:
            raise OverBudgetError(over_budget_message(settled))
        keep_plans(settled, draft.geometry, staging)
        write_library_files(staging, draft, tokenizer)
        manifest = replace(
            draft,
            recipe={**draft.recipe, **speed_order(settled, recipe.objective)},
            variants=tuple(found.variant for found in settled),
            parity={found.variant.name: found.parity for found in settled},
            over_budget={name: tuple(map(str, excess)) for name, excess in over.items()},
            files=list_files(staging),
        )
        write_manifest(staging, manifest)
        with progress.step("Opening the bundle as a user would, every digest compared"):
            _final_check(staging)
        check_target(out, force=force)  # a large export takes minutes: somebody else may have written there
        publish(staging, out)
    return Export(Bundle(out, manifest), over, settled)


def _workshop(
    checkpoint: Checkpoint,
    tokenizer: M3Tokenizer,
    texts: ChosenTexts,
    draft: Manifest,
    probe: verify.Probe,
    staging: Path,
    recipe: Recipe,
    progress: Progress,
) -> Workshop:
    """The model, its activation statistics and its graph: what every variant is made of."""
    given = read_plans(recipe.plan, checkpoint.geometry) if recipe.plan else {}
    tuning = _tuning_texts(checkpoint, tokenizer, texts)
    model = M3Model(checkpoint, draft.tokenizer.unused_ids)
    with progress.step(f"Activation statistics of {len(tuning.ranges)} calibration texts"):
        statistics = calibration.measure(model, tuning.ranges, lambda rows: progress.bar(rows, "calibration"))
    quantized = QuantizedModel(model, statistics)
    with progress.step("Tracing the graph"), translated("tracing the graph"):
        graphs = Graphs(passes.portable(trace(model)), staging / ".work")
    planner = Planner(quantized, tuning, draft.geometry, recipe, progress)
    return Workshop(graphs, quantized, planner, tokenizer, draft, probe, staging, recipe, given, progress)


def _tuning_texts(checkpoint: Checkpoint, tokenizer: M3Tokenizer, texts: ChosenTexts) -> TuningTexts:
    """The calibration texts as ids."""
    longest = min(calibration.MAX_TOKENS, checkpoint.geometry.max_tokens)

    def ids(kind: tuple[Text, ...]) -> tuple[Ids, ...]:
        return tuple(tokenizer.encode_batch([text.text for text in kind], longest).ids)

    return TuningTexts.split(ids(texts.calibration), ids(texts.degenerate_calibration))


def _check_padding(checkpoint: Checkpoint, info: TokenizerInfo) -> None:
    """The graph counts positions by config.json's pad id, batches are padded with the tokenizer's."""
    if checkpoint.pad_id != info.pad_id:
        raise CheckpointError(
            f"config.json: pad_token_id is {checkpoint.pad_id}, the tokenizer's {info.pad_id}; "
            "tokenizer and weights are of different models"
        )


def _probe(
    checkpoint: Checkpoint, info: TokenizerInfo, tokenizer: M3Tokenizer, texts: ChosenTexts, progress: Progress
) -> verify.Probe:
    """Run the reference over the probe texts."""
    longest = min(verify.MAX_PROBE_TOKENS, checkpoint.geometry.max_tokens)

    def run(kind: tuple[Text, ...]) -> verify.ProbeTexts:
        given = tuple(text.text for text in kind)
        ids = tokenizer.encode_batch(given, longest).ids
        outputs = reference_outputs(checkpoint, ids, info.unused_ids, lambda rows: progress.bar(rows, "reference"))
        return verify.ProbeTexts(given, tuple(ids), outputs)

    natural, degenerate = texts.probe, texts.degenerate_probe
    with progress.step(f"Running the PyTorch FP32 reference on {len(natural)} + {len(degenerate)} probe texts"):
        return verify.Probe(
            natural=run(natural),
            degenerate=run(degenerate),
            sha256=digest((*natural, *degenerate)),
            measured_on=f"{cpu_info().name}, {default_threads()} threads, {platform.system()} {platform.machine()}",
        )


def _describe(found: Source, checkpoint: Checkpoint, info: TokenizerInfo, ids_sha256: str, recipe: Recipe) -> Manifest:
    """The manifest as far as it is known before any variant exists."""
    weights, pooling = checkpoint.weights_sha256(), checkpoint.pooling
    return Manifest(
        space_id=space_id_of(weights, ids_sha256, checkpoint),
        source=SourceInfo(found.name, found.revision, weights, checkpoint.files()),
        geometry=checkpoint.geometry,
        heads=tuple(Head) if checkpoint.sparse else (Head.DENSE,),
        pooling=pooling.pooling,
        normalize=pooling.normalize,
        tokenizer=info,
        variants=(),
        parity={},
        over_budget={},
        files=(),
        recipe={
            "budget": recipe.budget.to_text(),
            "target": recipe.target.value,
            "objective": recipe.objective.value,
            "plan": "given" if recipe.plan else "measured",
            "pooling_from": pooling.pooling_from,
            "normalize_from": pooling.normalize_from,
        },
        tools={name: metadata.version(name) for name in TOOLS},
    )


def _final_check(staging: Path) -> None:
    with M3Encoder.open(staging, verify="full") as encoder:
        encoder.encode(["What is BGE M3?"])
