"""What an export is calibrated and measured on, as ids: texts of an encoder, pairs of texts of a reranker."""

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from m3_export.arrays import Ids
from m3_export.build_variant import library_errors
from m3_export.calibration.pairs import ChosenPairs, TextPair, numbers, pair_ids
from m3_export.calibration.statistics import CALIBRATION_TOKENS
from m3_export.calibration.texts import ChosenTexts, digest
from m3_export.calibration.texts.text import Text
from m3_export.checkpoint.added_tokens import probe_texts_with
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.tokenizer import CheckpointTokenizer, prove_same_ids, prove_same_pairs
from m3_export.plan.planner import TuningTexts
from m3_export.verify.measure import MAX_PROBE_TOKENS, Probe, ProbeTexts
from m3_export.verify.reference import reference_outputs, reference_scores
from m3_export.verify.scores import Scores
from m3_runtime.cpu import cpu_info, default_threads
from m3_runtime.io.progress import Progress
from m3_runtime.tokenizer import M3Tokenizer

Chosen = ChosenTexts | ChosenPairs
Track = Callable[[Sequence[list[int]]], Iterable[list[int]]]


def proven(
    original: CheckpointTokenizer, checkpoint: Checkpoint, texts: ChosenTexts, folder: Path
) -> tuple[M3Tokenizer, Chosen]:
    """Save the tokenizer, show that the runtime reads it to the same ids, and choose what the model is measured on.

    Added tokens get probe texts of their own.

    Raises:
        TokenizerMismatchError: names the first text, or pair, that differs.
        OptionsError: the probe texts give too few pairs.
    """
    texts = replace(texts, probe=(*texts.probe, *probe_texts_with(original.added, texts.probe)))
    tokenizer = prove_same_ids(original, folder, [text.text for text in texts.probe])
    if checkpoint.classifier is None:
        return tokenizer, texts
    pairs = ChosenPairs.of(texts)
    prove_same_pairs(original, tokenizer, (*pairs.probe, *pairs.degenerate_probe))
    return tokenizer, pairs


def probe_of(checkpoint: Checkpoint, tokenizer: M3Tokenizer, chosen: Chosen, progress: Progress) -> Probe:
    """Run the reference over the probe texts, or pairs."""
    natural, degenerate, what = chosen.probe, chosen.degenerate_probe, "pairs" if checkpoint.classifier else "texts"
    title = f"Running the PyTorch FP32 reference on {len(natural)} + {len(degenerate)} probe {what}"
    track = partial(progress.bar, title="reference")
    with progress.step(title), library_errors("running the reference"):
        if isinstance(chosen, ChosenPairs):
            texts = _of_pairs(checkpoint, tokenizer, chosen, track)
        else:
            texts = _of_texts(checkpoint, tokenizer, chosen, track)
        return Probe(
            *texts,
            sha256=digest((*natural, *degenerate)),
            measured_on=f"{cpu_info().name}, {default_threads()} threads, {platform.system()} {platform.machine()}",
        )


def _of_texts(
    checkpoint: Checkpoint, tokenizer: M3Tokenizer, texts: ChosenTexts, track: Track
) -> tuple[ProbeTexts, ProbeTexts]:
    """What the reference gives for natural and for degenerate texts."""
    longest = min(MAX_PROBE_TOKENS, checkpoint.geometry.max_tokens)

    def run(chosen: tuple[Text, ...]) -> ProbeTexts:
        ids = tokenizer.encode_batch([text.text for text in chosen], longest).ids
        return ProbeTexts(tuple(ids), reference_outputs(checkpoint, ids, tokenizer.info.unused_ids, track))

    return run(texts.probe), run(texts.degenerate_probe)


def _of_pairs(
    checkpoint: Checkpoint, tokenizer: M3Tokenizer, pairs: ChosenPairs, track: Track
) -> tuple[ProbeTexts, ProbeTexts]:
    """The same of pairs. Differences of all scores are measured in the spread of those of natural pairs."""
    longest = min(MAX_PROBE_TOKENS, checkpoint.geometry.max_tokens)

    def run(chosen: tuple[TextPair, ...], spread: float | None) -> tuple[ProbeTexts, Scores]:
        ids = pair_ids(tokenizer, chosen, longest)
        scores = Scores.of_reference(reference_scores(checkpoint, ids, track), numbers(chosen), spread)
        return ProbeTexts(ids, scores), scores

    natural, scores = run(pairs.probe, None)
    degenerate, _ = run(pairs.degenerate_probe, scores.spread)
    return natural, degenerate


def tuning_of(checkpoint: Checkpoint, tokenizer: M3Tokenizer, chosen: Chosen) -> TuningTexts:
    """The calibration texts, or pairs, as ids."""
    most = checkpoint.geometry.max_tokens
    if isinstance(chosen, ChosenPairs):
        ids_of = partial(pair_ids, tokenizer)
        return TuningTexts.of_pairs(
            chosen.calibration, chosen.degenerate_calibration, lambda pairs, longest: ids_of(pairs, min(longest, most))
        )

    def ids(texts: tuple[Text, ...]) -> tuple[Ids, ...]:
        return tuple(tokenizer.encode_batch([text.text for text in texts], min(CALIBRATION_TOKENS, most)).ids)

    return TuningTexts.split(ids(chosen.calibration), ids(chosen.degenerate_calibration))


def natural_ranges(chosen: Chosen) -> int:
    """How many of the texts, or pairs, that ranges are measured on are natural; `TuningTexts` has them first."""
    return len(TuningTexts.split([np.zeros(1, np.int32)] * len(chosen.calibration), ()).ranges)
