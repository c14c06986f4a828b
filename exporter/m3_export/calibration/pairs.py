"""Calibration and probe pairs of a reranker, made of the texts that encoders are calibrated and probed with.

A query is a piece of a text. Its passages come in degrees: the text that it is of, what follows it there, other texts
of its language, and texts of other languages; cut to several lengths. So every query has an order worth keeping, in
many languages. As no probe text is a calibration text, no probe pair is a calibration pair.

Degenerate pairs have a degenerate text on one side or both, the same text on both, or an empty side.
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
from m3_runtime.tokenizer import M3Tokenizer

# Queries, and passages of each. What parity is measured on has an order of ten and more; ranges need many texts.
CALIBRATION, PROBE = (32, 4), (24, 16)
DEGENERATE_CALIBRATION, DEGENERATE_PROBE = 256, 400
LEAST = 2
QUERY_CHARACTERS = 64
LENGTHS = (80, 200, 480, 2400)  # characters of passages
SAME_LANGUAGE = 4  # passages of the query's language, its own aside
QUERY_SHARE = 0.75  # of a pair's tokens, at most


@dataclass(frozen=True)
class Pair:
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

    calibration: tuple[Pair, ...]
    probe: tuple[Pair, ...]
    degenerate_calibration: tuple[Pair, ...]
    degenerate_probe: tuple[Pair, ...]

    @classmethod
    def of(cls, texts: ChosenTexts) -> "ChosenPairs":
        """Make them of the texts; the same ones for the same texts.

        Raises:
            OptionsError: the texts give fewer than two probe pairs, which have no spread.
        """
        calibration = natural_pairs(texts.calibration, *CALIBRATION)
        known = {pair.text for pair in calibration}
        probe = tuple(pair for pair in natural_pairs(texts.probe, *PROBE) if pair.text not in known)
        if len(probe) < LEAST:
            raise OptionsError(
                f"the probe texts give {len(probe)} pairs of a query and a passage; a reranker's parity needs {LEAST} "
                "and more: give several texts, longer than a query"
            )
        return cls(
            calibration=calibration,
            probe=probe,
            degenerate_calibration=degenerate_pairs(
                texts.degenerate_calibration, texts.calibration, DEGENERATE_CALIBRATION
            ),
            degenerate_probe=degenerate_pairs(texts.degenerate_probe, texts.probe, DEGENERATE_PROBE),
        )


def natural_pairs(texts: Sequence[Text], queries: int, passages: int) -> tuple[Pair, ...]:
    """Queries in as many languages as there are, with so many passages each where the texts give them."""
    found: list[Pair] = []
    for number, place in enumerate(islice(_in_turns(texts), queries)):
        query = _query(texts[place].text)
        chosen = dict.fromkeys(islice(_passages(texts, place, query, number, passages), passages))
        found += [Pair(query, passage, number) for passage in chosen]
    return tuple(found)


def degenerate_pairs(degenerate: Sequence[Text], natural: Sequence[Text], count: int) -> tuple[Pair, ...]:
    """Pairs with degenerate sides, every kind about as often; no two have the same query's number.

    >>> [(p.query, p.passage) for p in degenerate_pairs([Text("", "", "", "1"), Text("", "", "", "2")], [], 4)]
    [('', ''), ('1', '2'), ('2', '2')]
    """
    strange = [text.text for text in degenerate]
    plain = [text.text[: LENGTHS[1]] for text in natural]
    sides = [("", "")]
    sides += [pair for text in plain[:2] for pair in ((text, ""), ("", text))]
    for place, text in enumerate(strange):
        other, near = strange[(place + 1) % len(strange)], plain[place % len(plain)] if plain else text
        kinds = ((text, near), (near, text), (text, other), (text, text))
        sides.append(kinds[(place + 2) % 4])
    return tuple(Pair(*pair, number) for number, pair in enumerate(list(dict.fromkeys(sides))[:count]))


def pair_ids(tokenizer: M3Tokenizer, pairs: Sequence[Pair], longest: int) -> tuple[Ids, ...]:
    """(L,) ids of each pair, `<s> query </s></s> passage </s>`; the passage is cut where it is too long.

    A query has at most `QUERY_SHARE` of the tokens, as FlagEmbedding's reranker cuts it.
    """
    queries = tokenizer.encode_batch([pair.query for pair in pairs], int(longest * QUERY_SHARE)).ids
    passages = tokenizer.encode_batch([pair.passage for pair in pairs], longest).ids
    eos = np.array([tokenizer.info.eos_id], np.int32)
    joined = (np.concatenate([query, eos, passage[1:]]) for query, passage in zip(queries, passages, strict=True))
    return tuple(row if row.size <= longest else np.append(row[: longest - 1], eos) for row in joined)


def numbers(pairs: Sequence[Pair]) -> NDArray[np.int64]:
    """(N,) which query each pair is of."""
    return np.array([pair.number for pair in pairs], np.int64)


def _in_turns(texts: Sequence[Text]) -> Iterator[int]:
    """Places of texts that queries are taken of: every language in turn, short texts last."""
    rounds: dict[str, int] = {}
    turns = []
    for place, text in enumerate(texts):
        is_short = len(text.text) <= QUERY_CHARACTERS
        key = f"{text.lang} {is_short}"
        rounds[key] = rounds.get(key, -1) + 1
        turns.append((is_short, rounds[key], place))
    return (place for *_, place in sorted(turns))


def _query(text: str) -> str:
    """The first words of a text, or its first characters where it has no blanks."""
    start = text[:QUERY_CHARACTERS]
    head, _, _ = start.rpartition(" ")
    return start if len(text) <= QUERY_CHARACTERS or len(head) < QUERY_CHARACTERS // 2 else head


def _passages(texts: Sequence[Text], place: int, query: str, number: int, count: int) -> Iterator[str]:
    """The passages of a query, nearest first: of its own text, of its language, of others."""
    own = texts[place]
    rest = own.text.removeprefix(query).strip()
    yield own.text
    if rest:
        yield rest[: LENGTHS[1]]
    if rest and count > len(LENGTHS):
        yield rest[len(rest) // 2 :]
    places = [*range(place + 1, len(texts)), *range(place)]
    same = [i for i in places if texts[i].lang == own.lang]
    others = [i for i in places if texts[i].lang != own.lang]
    lengths = cycle(LENGTHS[number % 4 :] + LENGTHS[: number % 4])
    most = min(SAME_LANGUAGE, max(1, count - 3))
    step = max(1, len(others) // count)
    for i in (*same[:most], *others[::step], *same[most:]):
        yield texts[i].text[: next(lengths)]
