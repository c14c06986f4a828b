"""Pairs of a query and a passage as a reranker reads them: `<s> query </s></s> passage </s>`.

As FlagEmbedding 1.4.2's `FlagReranker` makes them of ids: the query is cut to `query_max_length` tokens, and then the
passage, and it alone, until the pair has `max_length`. Where even a passage of one token would be too much, that
library sends the pair uncut, however long it is; here it is an error.
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_runtime.encode.options import checked_integer, checked_max_length
from m3_runtime.errors import InputError, NoRoomError, TextTooLongError
from m3_runtime.scoring import checked_pairs
from m3_runtime.tokenizer import SPECIALS, M3Tokenizer, OnTruncate, TokenizedTexts

PAIR_SPECIALS = 4
"""Every pair has `<s>`, two `</s>` between its texts, and one behind them."""

LEAST_PAIR_TOKENS = PAIR_SPECIALS + 2
"""Each text has one token of its own."""

# Besides blanks: what SentencePiece's normalization of XLM-R (nmt_nfkc) drops or makes a blank of.
_BLANK = re.compile(r"[\s\x01-\x1f\x7f\x8f\x9f\u061c\u200b-\u200f\u2581\ufeff\ufffd]*")

Pair = tuple[str, str]
PairNames = Callable[[int, int], str]
"""What errors call a text: by the pair's index, and 0 for the query, 1 for the passage."""


@dataclass(frozen=True)
class PairLimits:
    """How long pairs may be.

    Attributes:
        max_length: most tokens of a pair, its four special tokens included.
        query_max_length: most tokens of a query, without special tokens.
        on_truncate: what becomes of longer ones.
    """

    max_length: int
    query_max_length: int
    on_truncate: OnTruncate = OnTruncate.TRUNCATE


@dataclass(frozen=True)
class TokenizedPairs:
    """P pairs as ids, (L,) int32 each; and (P,) which queries and which passages were cut."""

    ids: tuple[NDArray[np.int32], ...]
    is_query_cut: NDArray[np.bool_]
    is_passage_cut: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence["TokenizedPairs"]) -> "TokenizedPairs":
        """Several lists of pairs in one."""
        ids = tuple(row for part in parts for row in part.ids)
        cut = zip(*((part.is_query_cut, part.is_passage_cut) for part in parts), strict=True)
        return cls(ids, *map(np.concatenate, cut))

    def as_texts(self) -> TokenizedTexts:
        """The pairs as what a model reads: a pair is cut if one of its texts is."""
        return TokenizedTexts(self.ids, self.is_query_cut | self.is_passage_cut)


def pair_limits(
    max_length: int | None, query_max_length: int | None, most: int, on_truncate: OnTruncate = OnTruncate.TRUNCATE
) -> PairLimits:
    """Usable limits for a model that takes `most` tokens.

    A `max_length` of None is 512 or, where the model takes fewer, the model's limit; a `query_max_length` of None is
    three quarters of it, as in FlagEmbedding.

    Raises:
        InputError: not an integer, too few for a pair, or more than the model takes.
    """
    max_length = checked_max_length(max_length, most, "max_length", LEAST_PAIR_TOKENS)
    if query_max_length is None:
        return PairLimits(max_length, max_length * 3 // 4, on_truncate)
    return PairLimits(max_length, checked_integer(query_max_length, "query_max_length"), on_truncate)


def checked_sides(sentence_pairs: object) -> list[Pair]:
    """Pairs as `scoring.checked_pairs` takes them, none of whose texts is empty.

    Raises:
        InputError: something is not a pair of two texts, or a text is empty; the pair is named by its index.
    """
    pairs, _ = checked_pairs(sentence_pairs)
    for i, pair in enumerate(pairs):
        for side, text in enumerate(pair):
            check_not_empty(text, side_name(i, side))
    return pairs


def side_name(index: int, side: int) -> str:
    """What errors call a text of a pair.

    >>> side_name(3, 1)
    'the passage of pair 3'
    """
    return f"the {('query', 'passage')[side]} of pair {index}"


def check_not_empty(text: str, name: str) -> None:
    """Refuse a side of a pair that has nothing to read; `name` is how the error calls it.

    Raises:
        InputError: it is empty, or blank.
    """
    if is_blank(text):
        raise InputError(f"{name} is empty; a reranker scores a query and a passage, leave such pairs out")


def is_blank(text: str) -> bool:
    r"""Whether a text has nothing to read: blanks, and characters of which XLM-R's tokenizer makes no token.

    >>> is_blank(" \u200b\x01"), is_blank("a\u200b")
    (True, False)
    """
    return _BLANK.fullmatch(text) is not None


def tokenized_pairs(
    pairs: Sequence[Pair], limits: PairLimits, tokenizer: M3Tokenizer, name_of: PairNames, start: int = 0
) -> TokenizedPairs:
    """Tokenize P pairs; their texts have passed `check_text` and `check_not_empty`. A text that recurs is read once.

    `name_of` is what errors call a text; `start` is the index of the first pair, where these are a part of others.

    Raises:
        TextTooLongError: `limits` say that a text that is too long is an error; it is named.
        NoRoomError: a query leaves no room for its passage.
    """
    queries = _inner_ids([query for query, _ in pairs], limits.query_max_length, tokenizer)
    passages = _inner_ids([passage for _, passage in pairs], limits.max_length, tokenizer)
    ids, cut = [], np.zeros((2, len(pairs)), np.bool_)
    for i, (query, passage) in enumerate(pairs, start):
        (first, is_query_cut), (second, is_passage_cut) = queries[query], passages[passage]
        room = limits.max_length - PAIR_SPECIALS - first.size
        is_passage_cut = is_passage_cut or second.size > room
        if is_query_cut and limits.on_truncate is OnTruncate.ERROR:
            raise _too_long(query, name_of(i, 0), i, limits.query_max_length, tokenizer)
        if is_passage_cut and room < 1:
            raise NoRoomError(name_of(i, 0), i, first.size, limits.max_length)
        if is_passage_cut and limits.on_truncate is OnTruncate.ERROR:
            raise _too_long(passage, name_of(i, 1), i, room, tokenizer)
        ids.append(_joined(first, second[:room], tokenizer))
        cut[:, i - start] = is_query_cut, is_passage_cut
    return TokenizedPairs(tuple(ids), *cut)


def _inner_ids(texts: Sequence[str], most: int, tokenizer: M3Tokenizer) -> dict[str, tuple[NDArray[np.int32], bool]]:
    """By text: at most `most` of its ids, without special tokens around them; and whether it has more."""
    distinct = list(dict.fromkeys(texts))
    found = tokenizer.encode_batch(distinct, most + SPECIALS)
    rows = zip((row[1:-1] for row in found.ids), found.is_cut.tolist(), strict=True)
    return dict(zip(distinct, rows, strict=True))


def _joined(query: NDArray[np.int32], passage: NDArray[np.int32], tokenizer: M3Tokenizer) -> NDArray[np.int32]:
    start, end = (np.array([number], np.int32) for number in (tokenizer.info.cls_id, tokenizer.info.eos_id))
    return np.concatenate([start, query, end, end, passage, end])


def _too_long(text: str, name: str, index: int, most: int, tokenizer: M3Tokenizer) -> TextTooLongError:
    tokens = int(tokenizer.encode_batch([text], sys.maxsize).lengths[0]) - SPECIALS
    return TextTooLongError(name, index, tokens, most)
