"""Calibration and probe pairs of a reranker, made of the texts that encoders are calibrated and probed with.

A query is a piece of a text. Its passages come in degrees: the text that it is of, what follows it there, other texts
of its language, and texts of other languages; cut to several lengths. So every query has an order worth keeping, in
many languages. As no probe text is a calibration text, no probe pair is a calibration pair.

Degenerate pairs have a degenerate text on one side or both, the same text on both, or an empty side. None is empty on
both: that pair would be in every set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray

from m3_export.arrays import Ids
from m3_export.calibration.texts import ChosenTexts
from m3_export.calibration.texts.text import Text
from m3_export.errors import OptionsError
from m3_runtime.pairs import PAIR_SPECIALS, PairLimits, side_name, tokenized_pairs
from m3_runtime.tokenizer import M3Tokenizer

# Queries, and passages of each. What parity is measured on has an order of ten and more; ranges need many texts.
_CALIBRATION, _PROBE = (32, 4), (24, 16)
_DEGENERATE_CALIBRATION, _DEGENERATE_PROBE = 192, 256
_LEAST = 2
_QUERY_CHARACTERS = 64
_REST = 200  # characters of what follows a query in its text, and twice those of a degenerate pair's natural side
_FEW = 4  # passages of a query: no room for more than two of its own text
_LENGTHS = (60, 120, 240, 80, 160, 480, 100, 2400)  # characters of passages, in turn: most are short
_SAME_LANGUAGE = 4  # passages of the query's language, its own aside


@dataclass(frozen=True)
class TextPair:
    """A query and a passage; `number` says which pairs have the same query."""

    query: str
    passage: str
    number: int

    @property
    def text(self) -> str:
        """Both, as they are digested."""
        return f"{self.query}\0{self.passage}"


@dataclass(frozen=True)
class ChosenPairs:
    """The pairs of an export."""

    calibration: tuple[TextPair, ...]
    probe: tuple[TextPair, ...]
    degenerate_calibration: tuple[TextPair, ...]
    degenerate_probe: tuple[TextPair, ...]

    @classmethod
    def of(cls, texts: ChosenTexts) -> "ChosenPairs":
        """Make them of the texts; the same ones for the same texts.

        Raises:
            OptionsError: the texts give fewer than two probe pairs, which have no spread.
        """
        calibration = natural_pairs(texts.calibration, *_CALIBRATION)
        known = {pair.text for pair in calibration}
        probe = tuple(pair for pair in natural_pairs(texts.probe, *_PROBE) if pair.text not in known)
        if len(probe) < _LEAST:
            raise OptionsError(
                f"the probe texts give {len(probe)} pairs of a query and a passage; a reranker's parity needs {_LEAST} "
                "and more: give several texts, longer than a query"
            )
        return cls(
            calibration=calibration,
            probe=probe,
            degenerate_calibration=degenerate_pairs(
                texts.degenerate_calibration, texts.calibration, _DEGENERATE_CALIBRATION
            ),
            degenerate_probe=degenerate_pairs(texts.degenerate_probe, texts.probe, _DEGENERATE_PROBE),
        )


def natural_pairs(texts: Sequence[Text], queries: int, passages: int) -> tuple[TextPair, ...]:
    """Queries in as many languages as there are, with so many passages each where the texts give them."""
    found: list[TextPair] = []
    for number, index in enumerate(islice(_in_turns(texts), queries)):
        query = _query(texts[index].text)
        chosen = dict.fromkeys(islice(_passages(texts, index, query, number, passages), passages))
        found += [TextPair(query, passage, number) for passage in chosen]
    return tuple(found)


def degenerate_pairs(degenerate: Sequence[Text], natural: Sequence[Text], count: int) -> tuple[TextPair, ...]:
    """Pairs with degenerate sides, every kind about as often; no two have the same query's number.

    >>> [(p.query, p.passage) for p in degenerate_pairs([Text("", "", "", "1"), Text("", "", "", "2")], [], 4)]
    [('1', '2'), ('2', '2')]
    """
    odd = [text.text for text in degenerate]
    plain = [text.text[: _REST // 2] for text in natural]
    sides = [pair for text in plain[:2] for pair in ((text, ""), ("", text))]
    for index, text in enumerate(odd):
        other, near = odd[(index + 1) % len(odd)], plain[index % len(plain)] if plain else text
        kinds = ((text, near), (near, text), (text, other), (text, text))
        sides.append(kinds[(index + 2) % 4])
    return tuple(TextPair(*pair, number) for number, pair in enumerate(list(dict.fromkeys(sides))[:count]))


def pair_ids(tokenizer: M3Tokenizer, pairs: Sequence[TextPair], longest: int) -> tuple[Ids, ...]:
    """(L,) ids of each pair, as the runtime makes them; a query has at most half of the tokens."""
    limits = PairLimits(longest, (longest - PAIR_SPECIALS) // 2)
    return tokenized_pairs([(pair.query, pair.passage) for pair in pairs], limits, tokenizer, side_name).ids


def numbers(pairs: Sequence[TextPair]) -> NDArray[np.int64]:
    """(N,) which query each pair is of."""
    return np.array([pair.number for pair in pairs], np.int64)


def _in_turns(texts: Sequence[Text]) -> Iterator[int]:
    """Indices of texts that queries are taken from: every language in turn, short texts last."""
    rounds: dict[str, int] = {}
    turns = []
    for index, text in enumerate(texts):
        is_short = len(text.text) <= _QUERY_CHARACTERS
        key = f"{text.lang} {is_short}"
        rounds[key] = rounds.get(key, -1) + 1
        turns.append((is_short, rounds[key], index))
    return (index for *_, index in sorted(turns))


def _query(text: str) -> str:
    """The first words of a text, or its first characters where it has no blanks."""
    start = text[:_QUERY_CHARACTERS]
    head, _, _ = start.rpartition(" ")
    return start if len(text) <= _QUERY_CHARACTERS or len(head) < _QUERY_CHARACTERS // 2 else head


def _passages(texts: Sequence[Text], index: int, query: str, number: int, count: int) -> Iterator[str]:
    """The passages of a query, nearest first: of its own text, of its language, of others."""
    own = texts[index]
    rest = own.text.removeprefix(query).strip()
    yield own.text
    if rest:
        yield rest[:_REST]
    if rest and count > _FEW:
        yield rest[len(rest) // 2 :]
    after = [*range(index + 1, len(texts)), *range(index)]
    same = [i for i in after if texts[i].lang == own.lang]
    others = [i for i in after if texts[i].lang != own.lang]
    start = number % len(_LENGTHS)
    lengths = cycle(_LENGTHS[start:] + _LENGTHS[:start])
    most = min(_SAME_LANGUAGE, max(1, count - 3))
    step = max(1, len(others) // count)  # over all languages
    for i in (*same[:most], *others[::step], *same[most:]):
        yield texts[i].text[: next(lengths)]
