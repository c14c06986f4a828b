"""Calibration and probe texts: written for this project, in many languages, always disjoint."""

import hashlib
import json
from dataclasses import dataclass
from importlib import resources

from m3_export.errors import RecipeError


@dataclass(frozen=True)
class Text:
    """One text with its id, language code and kind (prose, query, code, …)."""

    id: str
    lang: str
    kind: str
    text: str


def calibration_texts() -> tuple[Text, ...]:
    """What quantization ranges are measured on."""
    return _read("calibration.jsonl")


def probe_texts() -> tuple[Text, ...]:
    """What parity is measured on; never seen by a calibration.

    Raises:
        RecipeError: a probe text is a calibration text too.
    """
    texts = _read("probe.jsonl")
    check_disjoint(calibration_texts(), texts)
    return texts


def check_disjoint(calibration: tuple[Text, ...], probe: tuple[Text, ...]) -> None:
    """Refuse parity measured on what was calibrated on; case and blanks do not make a text another one.

    Raises:
        RecipeError: names the first text that is in both.
    """
    known = {_folded(text.text): text.id for text in calibration}
    for text in probe:
        if (other := known.get(_folded(text.text))) is not None:
            raise RecipeError(f"probe text {text.id!r} is calibration text {other!r}; parity needs texts of its own")


def digest(texts: tuple[Text, ...]) -> str:
    """SHA-256 over the texts, so that two parities can be told to be of the same probe."""
    return hashlib.sha256("\0".join(text.text for text in texts).encode()).hexdigest()


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _read(name: str) -> tuple[Text, ...]:
    lines = resources.files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines()
    return tuple(Text(**json.loads(line)) for line in lines if line.strip())
