"""The Unigram model of a tokenizer.json, in a seventh of the memory that the `tokenizers` package takes for it.

The package keeps XLM-R's 250 000 pieces in a trie with a hash map in every node: 280 MB, and most of a second to build.
Here they are one dict. The ids are the package's: the same scores in the same precision, added in the same order, and
of equally good segmentations the same one. Kudo, "Subword Regularization", 2018, section 3.1, has the model.
"""

import copy
import math
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice

from m3_runtime.fewer_pieces import DroppedPieces

_UNKNOWN_PENALTY = 10.0
"""How much less than the worst piece an unknown character scores; the package's constant, and SentencePiece's."""

# Most words of a text were seen before. A word that is kept takes about 300 bytes.
_KEPT_WORDS = 16_384
_KEPT_WORD_CHARS = 32
_BLOCK_CHARS = 256
# In a word that repeats, paths may meet only at its end. One this long without a meeting is left to the package.
_MOST_UNDECIDED_CHARS = 16_384


class Unigram:
    """Splits a word into the pieces with the highest sum of scores (Viterbi). Safe to use from several threads."""

    def __init__(self, pieces: Sequence[str], scores: Sequence[float], unk_id: int) -> None:
        """Take over a vocabulary: V texts, whose ids are their places, and V log-probabilities.

        An empty text is the place of a piece that was dropped. `unk_id` is the id of characters that no piece covers.

        Raises:
            ValueError: no pieces, another number of scores, a score that is not finite, or `unk_id` is no piece's.
        """
        self._ids = {piece: index for index, piece in enumerate(pieces) if piece}
        self._id_of: Callable[[str], int | None] = self._ids.get
        self._dropped: DroppedPieces | None = None
        self._scores = array("d", scores)
        self._unk_id = unk_id
        if not (len(self._scores) == len(pieces) > unk_id >= 0 and math.isfinite(sum(self._scores))):
            raise ValueError("expected a finite score for each piece, and one of the pieces for what is unknown")
        self._unk_score = min(self._scores) - _UNKNOWN_PENALTY
        self._longest = max(map(len, pieces))
        self._kept = lru_cache(_KEPT_WORDS)(self._all_ids)

    def with_pieces(self, dropped: DroppedPieces) -> "Unigram":
        """The same with pieces that have an id and a score here, but no text."""
        fuller, known = copy.copy(self), self._ids.get

        def id_of(piece: str) -> int | None:
            index = known(piece)
            return dropped.id_of(piece) if index is None else index

        fuller._dropped, fuller._id_of, fuller._longest = dropped, id_of, max(self._longest, dropped.longest)
        fuller._kept = lru_cache(_KEPT_WORDS)(fuller._all_ids)
        return fuller

    def ids(self, words: Sequence[str], limit: int) -> list[int]:
        """The words' ids: all of them, or if they are more than `limit`, at least the first `limit`."""
        if max(map(len, words), default=0) <= _KEPT_WORD_CHARS:
            return list(chain.from_iterable(map(self._kept, islice(words, limit))))  # every word has an id
        ids: list[int] = []
        for word in words:
            kept = len(word) <= _KEPT_WORD_CHARS
            ids += self._kept(word) if kept else (number for number, _, _ in islice(self.pieces(word), limit))
            if len(ids) >= limit:
                break
        return ids

    def pieces(self, word: str) -> Iterator[tuple[int, int, int]]:
        """(id, start, stop) of the word's pieces in order; unknown characters in a row are one piece.

        Those of a long word come as soon as nothing behind them can change them.
        """
        unknown_from, end = -1, 0
        for stop in self._boundaries(word):
            start, end = end, stop
            number = self._id_of(word[start:stop])
            if number is None or number == self._unk_id:
                unknown_from = start if unknown_from < 0 else unknown_from
                continue
            if unknown_from >= 0:
                yield self._joined(word, unknown_from, start)
                unknown_from = -1
            yield number, start, stop
        if unknown_from >= 0:
            yield self._joined(word, unknown_from, end)

    def _all_ids(self, word: str) -> tuple[int, ...]:
        return tuple(number for number, _, _ in self.pieces(word))

    def _joined(self, word: str, start: int, stop: int) -> tuple[int, int, int]:
        """Unknown characters in a row; the package looks even these up."""
        known = self._id_of(word[start:stop]) if stop - start <= self._longest else None
        return self._unk_id if known is None else known, start, stop

    def _boundaries(self, word: str) -> Iterator[int]:
        """Where the best segmentation has a piece end, in order.

        After every block of a long word the best paths to all places that a piece may reach are followed back to where
        they meet. What lies before is decided. Where they meet nowhere, the block doubles.
        """
        starts, best = [0] * (len(word) + 1), [0.0] + [-math.inf] * len(word)
        decided, done, block, has_asked = 0, 0, _BLOCK_CHARS, False
        while done < len(word):
            if not has_asked and done - decided > _MOST_UNDECIDED_CHARS:
                has_asked = True
                if ends := self._packages_boundaries(word, len(word) - done):
                    yield from (end for end in ends if end > decided)
                    return
            stop = min(done + block, len(word))
            self._extend(word, range(done, stop), starts, best)
            reached = range(stop, min(stop + self._longest, len(word) + 1))
            met = _meeting_place(starts, [end for end in reached if best[end] > -math.inf])
            block = _BLOCK_CHARS if met > decided else 2 * block
            yield from _path(starts, decided, met)
            decided, done = met, stop

    def _packages_boundaries(self, word: str, most_pieces: int) -> list[int]:
        """The same ends, by the package, of the whole word: sums that begin elsewhere would round otherwise.

        A vocabulary of what the word can be made of is small where paths do not meet; none is made of more than
        `most_pieces`, and no end given. Its first piece, without characters, stands for unknown ones, and for the worst
        score, by which the package scores those.
        """
        from tokenizers import Tokenizer
        from tokenizers.models import Unigram as PackageUnigram

        characters, dropped = set(word), () if self._dropped is None else self._dropped.items()
        pieces = chain(self._ids.items(), dropped)
        known = [(piece, self._scores[number]) for piece, number in pieces if characters.issuperset(piece)]
        if len(known) > most_pieces:
            return []
        model = PackageUnigram([("", min(self._scores)), *known], 0, False)
        (found,) = Tokenizer(model).encode_batch([word], add_special_tokens=False)  # `encode` would hold Python's lock
        return [end for _, end in found.offsets]

    def _extend(self, word: str, places: range, starts: list[int], best: list[float]) -> None:
        """Try all pieces from `places` on: `best[e]` is the score up to e, `starts[e]` where the piece to e began."""
        known, scores, length, longest = self._id_of, self._scores, len(word), self._longest
        for start in places:
            score, single = best[start], start + 1
            for end in range(single, min(start + longest, length) + 1):
                index = known(word[start:end])
                if index is not None:
                    candidate = scores[index] + score
                elif end == single:
                    candidate = self._unk_score + score
                else:
                    continue
                if candidate > best[end]:
                    best[end], starts[end] = candidate, start


def _meeting_place(starts: Sequence[int], ends: Sequence[int]) -> int:
    """The last place that the best paths to all of these ends go through."""
    open_ends = set(ends)
    while len(open_ends) > 1:
        last = max(open_ends)
        open_ends.remove(last)
        open_ends.add(starts[last])
    return open_ends.pop()


def _path(starts: Sequence[int], first: int, last: int) -> list[int]:
    """Ends of the pieces of the best path from `first` to `last`."""
    ends = []
    while last > first:
        ends.append(last)
        last = starts[last]
    return ends[::-1]
