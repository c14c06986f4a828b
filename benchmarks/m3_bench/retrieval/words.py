"""Words, for BM25: any script, no dictionary."""

import unicodedata
from collections.abc import Iterator
from enum import Enum
from functools import lru_cache
from itertools import groupby

# Scripts that write no blanks between words: Thai and Lao, Myanmar, Khmer, kana, Han.
_BLANKLESS = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)


class _Class(Enum):
    WORD = 1
    BLANKLESS = 2
    BETWEEN = 3


def words_of(text: str) -> list[str]:
    """A text's words, case folded; of scripts without blanks its pairs of characters.

    >>> words_of("Zwei Häuser, 2024!")
    ['zwei', 'häuser', '2024']
    >>> words_of("東京タワー tower 京")
    ['東京', '京タ', 'タワ', 'ワー', 'tower', '京']
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return [word for kind, run in groupby(folded, _class_of) for word in _words(kind, "".join(run))]


def _words(kind: _Class, run: str) -> Iterator[str]:
    if kind is _Class.BLANKLESS and len(run) > 1:
        yield from (run[i : i + 2] for i in range(len(run) - 1))
    elif kind is not _Class.BETWEEN:
        yield run


@lru_cache(maxsize=1 << 16)
def _class_of(character: str) -> _Class:
    """Letters, numbers and marks make words; `str.isalnum` would cut Hindi words at their vowel signs."""
    if unicodedata.category(character)[0] not in "LNM":
        return _Class.BETWEEN
    code = ord(character)
    return _Class.BLANKLESS if any(low <= code <= high for low, high in _BLANKLESS) else _Class.WORD
