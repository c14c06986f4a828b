"""The export, as one paragraph: checkpoint → graph → variants → parity → bundle."""

import hashlib
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from m3_export import calibration, passes, verify
from m3_export.budget import Excess, excesses
from m3_export.checkpoint import Checkpoint
from m3_export.errors import CheckpointError, ExportError, OverBudgetError
from m3_export.model import M3Model
from m3_export.progress import Progress
from m3_export.recipe import Recipe
from m3_export.reference import reference_outputs
from m3_export.source import Source, resolve
from m3_export.texts import calibration_texts, digest, probe_texts
from m3_export.tokenizer import CheckpointTokenizer, prove_same_ids
from m3_export.trace import trace
from m3_export.variants import WRITERS, Graphs
from m3_runtime import M3Encoder
from m3_runtime.bundle import Bundle
from m3_runtime.bundle_writer import check_target, list_files, publish, staging_folder, write_manifest
from m3_runtime.cpu import cpu_info, default_threads
from m3_runtime.manifest import Head, Manifest, Parity, SourceInfo, TokenizerInfo, Variant
from m3_runtime.tokenizer import M3Tokenizer

TOOLS = ("torch", "transformers", "tokenizers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino", "nncf")


@dataclass(frozen=True)
class Export:
    """A finished export: the bundle, and what is over budget if that was allowed."""

    bundle: Bundle
    excesses: Mapping[str, tuple[Excess, ...]]


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
        texts = tuple(text.text for text in probe_texts())
        tokenizer_info = prove_same_ids(tokenizer, texts)
        tokenizer.save(staging)
        shutil.copyfile(found.folder / "config.json", staging / "config.json")
        progress.say(f"Tokenizer: {tokenizer_info.proof}, trailing blanks {tokenizer_info.blank_rule}")
        probe = _probe(checkpoint, tokenizer_info, staging, texts, progress)
        draft = _describe(found, checkpoint, tokenizer_info, tokenizer.ids_sha256, recipe)
        variants = _write_variants(checkpoint, tokenizer_info, recipe, staging, work, progress)
        del checkpoint  # 2.3 GB for BGE-M3, not needed while the variants are measured
        shutil.rmtree(work)
        draft = replace(draft, variants=variants, files=list_files(staging))
        parity = _measure(Bundle(staging, draft), probe, progress)
        over = _over_budget(draft, parity, recipe)
        manifest = replace(draft, parity=parity, over_budget={n: tuple(map(str, found)) for n, found in over.items()})
        write_manifest(staging, manifest)
        with progress.step("Opening the bundle as a user would, every digest compared"):
            _final_check(staging)
        check_target(out, force=force)  # a large export takes minutes: somebody else may have written there
        publish(staging, out)
    return Export(Bundle(out, manifest), over)


def _check_padding(checkpoint: Checkpoint, info: TokenizerInfo) -> None:
    """The graph counts positions by config.json's pad id, batches are padded with the tokenizer's."""
    if checkpoint.pad_id != info.pad_id:
        raise CheckpointError(
            f"config.json: pad_token_id is {checkpoint.pad_id}, the tokenizer's {info.pad_id}; "
            "tokenizer and weights are of different models"
        )


def _probe(
    checkpoint: Checkpoint, info: TokenizerInfo, staging: Path, texts: tuple[str, ...], progress: Progress
) -> verify.Probe:
    """Run the reference over the probe texts."""
    tokenizer = M3Tokenizer.open(staging / info.path, info)
    ids = tokenizer.encode_batch(texts, min(verify.MAX_PROBE_TOKENS, checkpoint.geometry.max_tokens)).ids
    with progress.step(f"Running the PyTorch FP32 reference on {len(texts)} probe texts"):
        reference = reference_outputs(checkpoint, ids, info.unused_ids, lambda rows: progress.bar(rows, "reference"))
    return verify.Probe(
        texts=texts,
        ids=ids,
        sha256=digest(probe_texts()),
        reference=reference,
        measured_on=f"{cpu_info().name}, {default_threads()} threads, {platform.system()} {platform.machine()}",
    )


def _write_variants(
    checkpoint: Checkpoint, info: TokenizerInfo, recipe: Recipe, staging: Path, work: Path, progress: Progress
) -> tuple[Variant, ...]:
    model = M3Model(checkpoint, info.unused_ids)
    with progress.step("Tracing the graph"), _translated("tracing the graph"):
        graph = passes.portable(trace(model))

    def calibrate() -> calibration.Statistics:
        texts = tuple(text.text for text in calibration_texts())
        longest = min(calibration.MAX_TOKENS, checkpoint.geometry.max_tokens)
        ids = M3Tokenizer.open(staging / info.path, info).encode_batch(texts, longest).ids
        return calibration.measure(model, ids, lambda rows: progress.bar(rows, "calibration"))

    graphs = Graphs(graph, calibrate, work)
    variants = []
    for name in recipe.variants:
        with progress.step(f"Writing {name}"), _translated(f"writing {name}"):
            variants.append(WRITERS[name](graphs, staging))
    return tuple(variants)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Torch, nncf and OpenVINO all fail with RuntimeError, for want of memory for instance."""
    try:
        yield
    except RuntimeError as error:
        raise ExportError(f"{what} failed, nothing was written: {error}") from error


def _describe(found: Source, checkpoint: Checkpoint, info: TokenizerInfo, ids_sha256: str, recipe: Recipe) -> Manifest:
    """The manifest as far as it is known before any variant exists."""
    weights, pooling = checkpoint.weights_sha256(), checkpoint.pooling
    return Manifest(
        space_id=_space_id(weights, ids_sha256, checkpoint),
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
            "pooling_from": pooling.pooling_from,
            "normalize_from": pooling.normalize_from,
        },
        tools={name: metadata.version(name) for name in TOOLS},
    )


def _space_id(weights: str, ids: str, checkpoint: Checkpoint) -> str:
    """Names the vector space: the same weights, tokenization, pooling and normalisation give the same id."""
    pooling, geometry = checkpoint.pooling, checkpoint.geometry
    encoder = f"{geometry.attention_heads} heads, epsilon {checkpoint.layer_norm_epsilon!r}"  # not seen in the weights
    parts = (weights, ids, encoder, pooling.pooling, f"normalize {pooling.normalize}")
    return "m3-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _measure(bundle: Bundle, probe: verify.Probe, progress: Progress) -> dict[str, Parity]:
    parity = {}
    for variant in bundle.manifest.variants:
        with progress.step(f"Measuring the parity of {variant.name}"):
            parity[variant.name] = verify.measure(bundle, variant, probe, default_threads())
    return parity


def _over_budget(draft: Manifest, parity: Mapping[str, Parity], recipe: Recipe) -> Mapping[str, tuple[Excess, ...]]:
    over = {
        v.name: excesses(parity[v.name], recipe.budget, v.precision, normalize=draft.normalize) for v in draft.variants
    }
    over = {name: found for name, found in over.items() if found}
    if over and not recipe.allow_over_budget:
        lines = [f"  {name}: {excess}" for name, found in over.items() for excess in found]
        raise OverBudgetError(
            "over budget, no bundle was written:\n" + "\n".join(lines) + "\nLeave the variant out (--variants), set "
            "another --budget (INT8 only; FP32 is held to arithmetic noise), or keep it with --allow-over-budget"
        )
    return over


def _final_check(staging: Path) -> None:
    with M3Encoder.open(staging, verify="full") as encoder:
        encoder.encode(["What is BGE M3?"])
