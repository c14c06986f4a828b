"""Calibration and probe texts: written for this project, in many languages, always disjoint."""

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

from m3_export.calibration.texts.degenerate import Purpose, degenerate_texts
from m3_export.calibration.texts.text import Text, folded
from m3_export.errors import OptionsError
from m3_runtime.io.formats import SourceFormat, format_of, packing_of
from m3_runtime.tokenizer import check_text

DEGENERATE_CALIBRATION, DEGENERATE_PROBE = 512, 800


@dataclass(frozen=True)
class ChosenTexts:
    """The texts of an export, and what a user should know about them."""

    calibration: tuple[Text, ...]
    probe: tuple[Text, ...]
    degenerate_calibration: tuple[Text, ...]
    degenerate_probe: tuple[Text, ...]
    warnings: tuple[str, ...]


def chosen_texts(calibration: Path | None, probe: Path | None) -> ChosenTexts:
    """The user's texts where a file is given, ours where not.

    Raises:
        OptionsError: a file cannot be read or has no texts, or a probe text is a calibration text too.
    """
    ranges = calibration_texts() if calibration is None else read_texts(calibration, "calibration texts")
    held_out = _read("probe.jsonl") if probe is None else read_texts(probe, "probe texts")
    check_disjoint(ranges, held_out)
    languages = {text.lang for text in ranges}
    warnings = []
    if calibration is not None and len(languages) < 2:
        warnings.append(
            f"all {len(ranges)} calibration texts are in one language or script ({languages.pop()}): ranges measured "
            "on them may be too narrow for others; add some texts of each language that will be encoded"
        )
    return ChosenTexts(
        calibration=ranges,
        probe=held_out,
        degenerate_calibration=degenerate_texts(Purpose.CALIBRATION, _words(ranges), DEGENERATE_CALIBRATION),
        degenerate_probe=degenerate_texts(Purpose.PROBE, _words(held_out), DEGENERATE_PROBE),
        warnings=tuple(warnings),
    )


def _words(texts: tuple[Text, ...]) -> list[str]:
    return " ".join(text.text for text in texts).split()


def read_texts(path: Path, what: str) -> tuple[Text, ...]:
    """Texts of a file: JSONL with "text" and, if known, "lang"; any other ending: a text a line.

    Raises:
        OptionsError: the file is of another format or cannot be read, a line is not what it must be, or there is no
            text.
        InputError: a text has a lone surrogate.
    """
    if packing_of(path.name) or format_of(path.name) not in (None, SourceFormat.LINES, SourceFormat.JSONL):
        raise OptionsError(f"{what} {path}: expected a text on every line, or JSONL, unpacked; convert it")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # no other character ends a line of JSONL
    except (OSError, UnicodeDecodeError) as error:
        raise OptionsError(f"{what} {path}: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    texts = tuple(_text(path, number, line, what) for number, line in numbered)
    if not texts:
        raise OptionsError(f'{what} {path}: it holds no texts; expected one text a line, or JSONL with a key "text"')
    return texts


def _text(path: Path, number: int, line: str, what: str) -> Text:
    if format_of(path.name) is not SourceFormat.JSONL:
        return Text(str(number), script_of(line), "given", line)
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise OptionsError(f"{what} {path}, line {number}: not JSON ({error})") from error
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise OptionsError(f'{what} {path}, line {number}: expected an object with a "text" that is not empty')
    check_text(text, f"{what} {path}, line {number}")
    return Text(str(number), str(content.get("lang") or script_of(text)), "given", text)


def script_of(text: str) -> str:
    """The script of most letters, which is all that a text shows of its language without a model.

    >>> script_of("Grüß Gott"), script_of("你好, BM25"), script_of("42")
    ('latin', 'cjk', 'none')
    """
    names = Counter(unicodedata.name(letter, "none").split(" ")[0].lower() for letter in text if letter.isalpha())
    return names.most_common(1)[0][0] if names else "none"


def calibration_texts() -> tuple[Text, ...]:
    """What quantization ranges are measured on."""
    return _read("calibration.jsonl")


def probe_texts() -> tuple[Text, ...]:
    """What parity is measured on; never seen by a calibration.

    Raises:
        OptionsError: a probe text is a calibration text too.
    """
    texts = _read("probe.jsonl")
    check_disjoint(calibration_texts(), texts)
    return texts


def check_disjoint(calibration: tuple[Text, ...], probe: tuple[Text, ...]) -> None:
    """Refuse parity measured on what was calibrated on; case and blanks do not make a text another one.

    Raises:
        OptionsError: names the first text that is in both.
    """
    known = {folded(text.text): text.id for text in calibration}
    for text in probe:
        if (other := known.get(folded(text.text))) is not None:
            raise OptionsError(
                f"probe text {text.id!r} is also calibration text {other!r}; measure parity on other texts"
            )


class _HasText(Protocol):
    @property
    def text(self) -> str: ...


def digest(texts: Sequence[_HasText]) -> str:
    """SHA-256 over the texts, which shows whether two parities were measured on the same ones."""
    return hashlib.sha256("\0".join(text.text for text in texts).encode()).hexdigest()


def _read(name: str) -> tuple[Text, ...]:
    lines = resources.files(__package__).joinpath(name).read_text(encoding="utf-8").splitlines()
    return tuple(Text(**json.loads(line)) for line in lines if line.strip())
