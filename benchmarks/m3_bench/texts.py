"""Seeded texts of exactly so many tokens, so that every contender gets the same work through its own tokenizer."""

import random
from collections.abc import Sequence

from m3_bench.errors import BenchError
from m3_runtime.tokenizer import SPECIALS, M3Tokenizer

_WORDS = 2000
_FEWEST_WORDS = 16
_TRIES = 40_000


class TextMaker:
    """Texts made of words that are one token each, wherever they stand."""

    def __init__(self, tokenizer: M3Tokenizer, seed: int = 0) -> None:
        """Find the words.

        Raises:
            BenchError: the vocabulary has too few.
        """
        self._tokenizer = tokenizer
        self._random = random.Random(seed)  # noqa: S311 - noise, no secret
        self._words = self._one_token_words()
        if len(self._words) < _FEWEST_WORDS:
            raise BenchError(f"the vocabulary has {len(self._words)} words of one token, {_FEWEST_WORDS} are needed")

    def text(self, tokens: int) -> str:
        """A text of so many tokens, both special tokens counted.

        Raises:
            BenchError: it came out otherwise.
        """
        text = " ".join(self._random.choices(self._words, k=tokens - SPECIALS))
        found = len(self._tokenizer.encode_batch([text], tokens + 1).ids[0])
        if found != tokens:
            raise BenchError(f"a text made to have {tokens} tokens has {found}; this tokenizer joins words")
        return text

    def batches(self, lengths: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
        """Texts of these lengths, batch by batch."""
        return tuple(tuple(self.text(tokens) for tokens in batch) for batch in lengths)

    def _one_token_words(self) -> list[str]:
        """Pieces that come back as themselves when they are tokenized alone, in an order that the seed fixes."""
        vocabulary = self._tokenizer.vocab_size
        ids = self._random.sample(range(vocabulary), min(_TRIES, vocabulary))
        words = [word for word in (self._tokenizer.decode([id_]).strip() for id_ in ids) if word.isalpha()]
        rows = self._tokenizer.encode_batch(words, 8).ids
        return [word for word, row in zip(words, rows, strict=True) if row.size == SPECIALS + 1][:_WORDS]
