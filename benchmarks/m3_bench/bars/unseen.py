"""Texts that no plan was made on and no bundle was proven with: natural ones, and degenerate ones made in code."""

import random
from collections.abc import Iterator
from pathlib import Path

from m3_export.calibration.texts import read_texts

_NATURAL = Path(__file__).parents[2] / "data" / "multilingual" / "corpus.jsonl"
_SCRIPTS = "aQ7~éßжΩאعहไ한中あ😀\u00a0"
_WORDS = ("la", "und", "www", "не", "的", "ที่", "the", "🙂", "</s>", "<mask>", "0", "==", "e4b", "ʻa")
_REPEATS = (2, 3, 8, 40, 600)
_MIXTURES = 160


def natural_texts() -> tuple[str, ...]:
    """Paragraphs of the labelled corpus in the source tree, none of them a calibration or probe text."""
    return tuple(text.text for text in read_texts(_NATURAL, "unseen texts"))


def degenerate_texts(seed: int = 0) -> tuple[str, ...]:
    """Seeded texts that are no language: empty and blank ones, one character, repetition, mixtures, digits, base64."""
    return tuple(_degenerate(random.Random(seed)))  # noqa: S311 - noise, no secret


def _degenerate(rng: random.Random) -> Iterator[str]:
    yield from ("", " ", "\n\t ")
    yield from _SCRIPTS
    for number, word in enumerate(_WORDS):
        yield " ".join([word] * _REPEATS[number % len(_REPEATS)])
    for number in range(_MIXTURES):
        yield " ".join(rng.choices(_WORDS, k=1 + number % 8))
    for length in (3, 20, 200):
        yield "".join(rng.choices("0123456789", k=length))
        yield "".join(rng.choices("ABCDEFGHabcdefgh0123456789+/", k=length)) + "=="
        yield "".join(rng.choices(_SCRIPTS, k=length))
