"""One calibration or probe text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """One text with its id, language code and kind (prose, query, code, …)."""

    id: str
    lang: str
    kind: str
    text: str


def folded(text: str) -> str:
    r"""The form in which two texts are compared: case and blanks do not count.

    >>> folded("  Grüß\nGott ")
    'grüss gott'
    """
    return " ".join(text.casefold().split())
