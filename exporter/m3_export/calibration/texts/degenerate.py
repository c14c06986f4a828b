"""Degenerate texts, generated: what users send that is no language, or hardly any.

Static ranges are measured on some texts and hold for all natural language. Degenerate texts leave them: the empty text,
one character, a word repeated to the end, digits, base64, "www la www". Calibration and probe each get a set of their
own: other words, other characters, other random numbers.
"""

import base64
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum

from m3_export.calibration.texts.text import Text, folded

LETTERS = (
    # first and last code point of a block: a character of any script
    (0x21, 0x7E), (0xA1, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x531, 0x556), (0x5D0, 0x5EA), (0x621, 0x64A),
    (0x905, 0x939), (0x985, 0x9A8), (0xB85, 0xBB9), (0xC05, 0xC39), (0xE01, 0xE3A), (0x10D0, 0x10F0), (0x1200, 0x1248),
    (0x1780, 0x17A2), (0x2010, 0x2046), (0x2190, 0x21FF), (0x2200, 0x22FF), (0x3041, 0x3096), (0x30A1, 0x30FA),
    (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xFF01, 0xFF5E),
)  # fmt: skip
EMOJI = ((0x1F300, 0x1F5FF), (0x1F600, 0x1F64F), (0x1F680, 0x1F6C5), (0x2600, 0x26FF))
SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", "<mask>")
REPEATS = (2, 2, 2, 3, 3, 3, 5, 5, 12, 12, 40, 150, 510)
CODE = (
    "for {0} in range({1}): {2}({0})",
    "{0}->{2}[{1}] = NULL;",
    "SELECT {0} FROM {2} WHERE {0} = {1};",
    "</{0}></{2}>",
    "#define {0} ({2} << {1})",
    'if (x{1} == "{0}") {{ return {2}; }}',
    "{{{{{0}|{2}|{1}}}}}",
    "{0}@{2}-{1}.example.org",
)
BLANKS = ("", " ", "\n", "\t \t", "　")


class Purpose(IntEnum):
    """Which of the two disjoint sets. Its value decides seeds, characters and blanks."""

    CALIBRATION = 0
    PROBE = 1


def degenerate_texts(purpose: Purpose, words: Sequence[str], count: int) -> tuple[Text, ...]:
    """Generate distinct degenerate texts, every kind about as often; the same ones for the same arguments.

    Texts of several words are made of `words`; the sets of the two purposes have no text in common.
    """
    rng = random.Random(f"m3 degenerate texts {purpose.name}")  # noqa: S311 - not for secrets
    ours = [word for word in dict.fromkeys(words) if _half(word) == purpose]
    maker = _Maker(purpose, rng, ours or list(dict.fromkeys(words)))
    found: dict[str, Text] = {}
    for kind, make in itertools.islice(itertools.cycle(maker.kinds().items()), 8 * count):
        text = make()
        if _half(text) == purpose and folded(text) not in found:
            found[folded(text)] = Text(f"{purpose.name.lower()}-{kind}-{len(found)}", "none", kind, text)
        if len(found) == count:
            break
    return tuple(found.values())


def _half(text: str) -> int:
    """Which set a text belongs to, by its characters: the same text can never be in both."""
    return sum(map(ord, folded(text))) % 2


class _Maker:
    """Makes one text of a kind."""

    def __init__(self, purpose: Purpose, rng: random.Random, words: Sequence[str]) -> None:
        self._purpose, self._rng, self._words = purpose, rng, words

    def kinds(self) -> dict[str, Callable[[], str]]:
        return {
            "character": self._character,
            "word": lambda: self._several(1),
            "words": lambda: self._several(self._rng.randint(2, 6)),
            "repeated": self._repeated,
            "repeated-pair": lambda: " ".join(self._pair()),
            "special": self._special,
            "digits": self._digits,
            "base64": lambda: base64.b64encode(self._rng.randbytes(self._rng.randint(3, 40))).decode(),
            "code": lambda: self._rng.choice(CODE).format(
                self._several(1), self._rng.randint(0, 9999), self._several(1)
            ),
            "emoji": lambda: "".join(self._of(EMOJI) for _ in range(self._rng.randint(1, 8))),
            "mixed": lambda: " ".join(self._of(LETTERS) for _ in range(self._rng.randint(2, 24))),
            "blank": lambda: (
                self._rng.choice(BLANKS) * self._rng.randint(1, 3) + self._rng.choice(("", ".", "-", "a", "1"))
            ),
        }

    def _character(self) -> str:
        return self._of(LETTERS)

    def _several(self, count: int) -> str:
        return " ".join(self._rng.choice(self._words) for _ in range(count))

    def _repeated(self) -> str:
        part = self._rng.choice((self._character, lambda: self._several(1), self._digits))()
        return self._rng.choice(("", " ")).join([part] * self._rng.choice(REPEATS))

    def _pair(self) -> Iterator[str]:
        a, b = self._several(1), self._rng.choice((self._several(1), self._character()))
        return itertools.islice(itertools.cycle((a, b)), self._rng.choice((3, 4, 7, 30)))

    def _special(self) -> str:
        parts = [self._rng.choice((*SPECIAL, self._several(1))) for _ in range(self._rng.randint(1, 5))]
        return self._rng.choice(("", " ")).join(parts)

    def _digits(self) -> str:
        digits = "".join(self._rng.choice("0123456789") for _ in range(self._rng.choice((1, 2, 4, 9, 60))))
        return self._rng.choice(
            (digits, f"{digits}.{digits[::-1]}", f"+{digits[:3]} {digits}", f"{digits}-{digits[:2]}-7")
        )

    def _of(self, blocks: Sequence[tuple[int, int]]) -> str:
        return chr(self._rng.randint(*self._rng.choice(blocks)))
