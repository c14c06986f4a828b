"""The calibration and probe texts of an export as token ids; a reranker has pairs of texts instead."""

import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

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


def probe_of(
    checkpoint: Checkpoint, tokenizer: M3Tokenizer, chosen: Chosen, progress: Progress, *, has_int8: bool
) -> Probe:
    """Run the reference over the probe texts, or pairs, degenerate ones too if INT8 is to be measured on them.

    Differences of scores, those of degenerate pairs too, are measured in the spread of the natural pairs' scores.
    """
    natural, degenerate, what = chosen.probe, chosen.degenerate_probe, "pairs" if checkpoint.classifier else "texts"
    longest = min(MAX_PROBE_TOKENS, checkpoint.geometry.max_tokens)
    count = f"{len(natural)} + {len(degenerate)}" if has_int8 else f"{len(natural)}"
    track = partial(progress.bar, title="reference")

    def run(texts: Sequence[Text] | Sequence[TextPair], spread: float | None = None) -> ProbeTexts:
        ids = _ids(tokenizer, texts, longest)
        if checkpoint.classifier is None:
            return ProbeTexts(ids, reference_outputs(checkpoint, ids, tokenizer.info.unused_ids, track))
        scores = reference_scores(checkpoint, ids, track)
        return ProbeTexts(ids, Scores.of_reference(scores, numbers(_pairs(texts)), spread))

    with (
        progress.step(f"Running the PyTorch FP32 reference on {count} probe {what}"),
        library_errors("running the reference"),
    ):
        found = run(natural)
        spread = found.reference.spread if isinstance(found.reference, Scores) else None
        return Probe(
            found,
            run(degenerate, spread) if has_int8 else None,
            sha256=digest((*natural, *degenerate)),
            measured_on=f"{cpu_info().name}, {default_threads()} threads, {platform.system()} {platform.machine()}",
        )


def tuning_of(checkpoint: Checkpoint, tokenizer: M3Tokenizer, chosen: Chosen) -> TuningTexts:
    """The calibration texts, or pairs, as ids."""
    most = checkpoint.geometry.max_tokens
    natural, degenerate = chosen.calibration, chosen.degenerate_calibration
    if isinstance(chosen, ChosenPairs):
        return TuningTexts.of_pairs(
            _pairs(natural), _pairs(degenerate), lambda pairs, longest: _ids(tokenizer, pairs, min(longest, most))
        )
    longest = min(CALIBRATION_TOKENS, most)
    return TuningTexts.split(_ids(tokenizer, natural, longest), _ids(tokenizer, degenerate, longest))


def _ids(tokenizer: M3Tokenizer, texts: Sequence[Text] | Sequence[TextPair], longest: int) -> tuple[Ids, ...]:
    """(L,) ids of each text, or pair, truncated."""
    if pairs := _pairs(texts):
        return pair_ids(tokenizer, pairs, longest)
    return tuple(tokenizer.encode_batch([text.text for text in texts], longest).ids)


def _pairs(texts: Sequence[Text] | Sequence[TextPair]) -> list[TextPair]:
    return [one for one in texts if isinstance(one, TextPair)]
