"""Texts of the benchmark as pairs of a query and a passage. Needs the standard library alone, which every peer has."""

from collections.abc import Sequence

_PASSAGES_SHARE = 8  # a query is one word of so many
_MORE_SPECIALS = 2  # a pair has four special tokens, a text two


def pairs_of(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Split texts of at least four words of one token each; a pair has as many tokens as its text had.

    >>> pairs_of(["a b c d e f g h i j"])
    [('a', 'b c d e f g h')]
    """
    found = []
    for text in texts:
        words = text.split()[:-_MORE_SPECIALS]
        query = max(1, len(words) // _PASSAGES_SHARE)
        found.append((" ".join(words[:query]), " ".join(words[query:])))
    return found
