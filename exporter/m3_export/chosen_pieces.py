"""The pieces of an export: all of them, or those that were asked for, with what that costs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from m3_export.calibration.texts import ChosenTexts
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.tokenizer import CheckpointTokenizer
from m3_export.checkpoint.vocabulary import (
    PIPELINE_NAME,
    KeptPieces,
    cut_tokenizer,
    pieces_of_corpora,
    pieces_of_languages,
)
from m3_export.export_texts import Chosen
from m3_export.options import ExportOptions
from m3_export.verify.measure import MAX_PROBE_TOKENS
from m3_export.verify.vocabulary import spelt, vocabulary_loss
from m3_runtime.bundle.manifest import Vocabulary, VocabularyLoss
from m3_runtime.bundle.space import full_space_of, space_of_fewer_pieces
from m3_runtime.fewer_pieces import PIECES_NAME
from m3_runtime.io.progress import Progress
from m3_runtime.tokenizer import M3Tokenizer


@dataclass(frozen=True)
class ChosenPieces:
    """A tokenizer as files and as the runtime reads them, `whole` with every piece, and the texts of the export.

    `kept` is None where every piece stays; `loss` is what dropping the others costs, by language.
    """

    tokenizer: CheckpointTokenizer
    runtime: M3Tokenizer
    whole: M3Tokenizer
    texts: Chosen
    kept: KeptPieces | None = None
    loss: Mapping[str, VocabularyLoss] = field(default_factory=dict)

    def space_id(self, full_space_id: str) -> str:
        """The bundle's vector space, from that of the model with all pieces."""
        return full_space_id if self.kept is None else space_of_fewer_pieces(full_space_id, self.kept.ids.tolist())

    def vocabulary(self, space_id: str) -> Vocabulary | None:
        """What the manifest says, of a bundle with this space."""
        if self.kept is None:
            return None
        rows, full = len(self.kept.ids), full_space_of(space_id)
        return Vocabulary(rows, full, self.kept.chosen_by, PIECES_NAME, PIPELINE_NAME, self.loss)


def choose_pieces(
    original: CheckpointTokenizer,
    whole: M3Tokenizer,
    checkpoint: Checkpoint,
    texts: Chosen,
    options: ExportOptions,
    staging: Path,
    progress: Progress,
) -> ChosenPieces:
    """Leave out pieces, if the options ask for it; `staging` has the whole tokenizer.json, which is replaced then.

    Raises:
        InputError: a corpus cannot be read.
        OptionsError: every piece would stay, or no probe text could be spelt.
        TokenizerMismatchError: the smaller tokenizer does not do what it should.
    """
    if not (options.languages or options.vocabulary_from):
        return ChosenPieces(original, whole, whole, texts)
    assert isinstance(texts, ChosenTexts)  # a reranker keeps every piece
    if options.languages:
        ours = [text.text for text in (*texts.calibration, *texts.probe) if text.lang in options.languages]
        kept = pieces_of_languages(original.saved, whole, options.languages, ours)
    else:
        with progress.step(f"Reading the pieces of {', '.join(options.vocabulary_from)}"):
            kept = pieces_of_corpora(original.saved, whole, options.vocabulary_from)
    progress.say(f"Vocabulary: {len(kept.ids)} of {checkpoint.geometry.vocab_size} rows, {kept.chosen_by}")
    cut, runtime = cut_tokenizer(original, whole, kept, staging, [text.text for text in texts.probe])
    left = replace(texts, probe=spelt(texts.probe, whole, runtime))
    left = replace(left, degenerate_probe=spelt(texts.degenerate_probe, whole, runtime))
    longest = min(MAX_PROBE_TOKENS, checkpoint.geometry.max_tokens)
    with progress.step("Running the PyTorch FP32 reference with and without the dropped pieces"):
        loss = vocabulary_loss(
            checkpoint, whole, runtime, texts.probe, longest, lambda rows: progress.bar(rows, "vocabulary")
        )
    return ChosenPieces(cut, runtime, whole, left, kept, loss)
