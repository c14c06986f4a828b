"""What leaving out pieces costs, in PyTorch FP32: the same weights on the ids of both tokenizers."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from m3_export.calibration.texts.text import Text
from m3_export.checkpoint.folder import Checkpoint
from m3_export.errors import OptionsError
from m3_export.verify.reference import reference_outputs
from m3_runtime.bundle.manifest import VocabularyLoss
from m3_runtime.tokenizer import M3Tokenizer

_Track = Callable[[Sequence[list[int]]], Iterable[list[int]]]


def vocabulary_loss(
    checkpoint: Checkpoint, full: M3Tokenizer, cut: M3Tokenizer, texts: Sequence[Text], longest: int, track: _Track
) -> Mapping[str, VocabularyLoss]:
    """Per language: how many texts keep all their pieces, and how far the others' dense vectors move.

    Texts are truncated at `longest` tokens; `track` shows progress.
    """
    given = [text.text for text in texts]
    before, after = full.encode_batch(given, longest), cut.encode_batch(given, longest)
    assert after.is_respelled is not None
    moved = np.flatnonzero(after.is_respelled).tolist()
    cosines = np.ones(len(texts))
    if moved:
        ids = [*(before.ids[i] for i in moved), *(after.ids[i] for i in moved)]
        dense = reference_outputs(checkpoint, ids, cut.info.unused_ids, track).dense.astype(np.float64)
        first, second = dense[: len(moved)], dense[len(moved) :]
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        cosines[moved] = (first * second).sum(axis=1) / lengths
    found = {}
    for language in sorted({text.lang for text in texts}):
        of_language = np.array([text.lang == language for text in texts])
        rest = cosines[of_language & after.is_respelled]
        found[language] = VocabularyLoss(
            texts=int(of_language.sum()),
            exact=int((of_language & ~after.is_respelled).sum()),
            cosine_mean=float(rest.mean()) if rest.size else 1.0,
            cosine_min=float(rest.min()) if rest.size else 1.0,
        )
    return found


def spelt(texts: tuple[Text, ...], full: M3Tokenizer, cut: M3Tokenizer) -> tuple[Text, ...]:
    """The probe texts without those in which a character that had a piece has none left: they are of other languages.

    Raises:
        OptionsError: none is left.
    """
    before, after = (_unknown(one, [text.text for text in texts]) for one in (full, cut))
    left = tuple(text for text, b, a in zip(texts, before, after, strict=True) if a <= b)
    if not left:
        raise OptionsError(
            "no probe text can be spelt with the pieces that are kept; give texts in your languages: --probe-texts"
        )
    return left


def _unknown(tokenizer: M3Tokenizer, texts: Sequence[str]) -> Iterable[int]:
    unknown = tokenizer.info.unk_id
    return [int((ids == unknown).sum()) for ids in tokenizer.encode_batch(texts, 2**31 - 1).ids]
