"""Text to token ids: the checkpoint's own pipeline, with its vocabulary and truncation here.

The `tokenizers` package finds special tokens, normalizes and splits into words, all as tokenizer.json says. It gets a
vocabulary without pieces, with which every word is one unknown token; `unigram` knows the pieces, in a fraction of the
memory.

The package can truncate and pad by itself, but that is state on a shared object: setting it per call from several
threads fails ("Already borrowed") or gives another call's lengths. So ids are cut here.
"""

import json
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import TokenizerInfo
from m3_runtime.errors import BundleDamagedError, BundleFormatError, InputError, TextTooLongError
from m3_runtime.fewer_pieces import FewerPieces
from m3_runtime.sequences import listed
from m3_runtime.splitting import RunLimit, greedy_runs
from m3_runtime.unigram import Unigram

SPECIALS = 2
"""Every text is wrapped in <s> and </s>."""

# The id of a word in the pipeline without pieces. Its one piece is empty, so no text has it.
_WORD = 0
_NO_PIECES = {"type": "Unigram", "unk_id": _WORD, "vocab": [["", 0.0]], "byte_fallback": False}

# Texts and characters that are tokenized at once: an Encoding of the package costs about 100 bytes a word.
_GROUP = RunLimit(256, 1_000_000)

# Texts this many times longer than any plausible answer are tokenized in prefixes. Over many languages a
# piece is 1 to 5 characters long; 16 leaves room for blanks.
_CHARS_PER_TOKEN = 16
_MIN_PREFIX_CHARS = 4096

# Unicode's Grapheme_Cluster_Break=Prepend: such a character and the blank after it are one grapheme, which
# the normalizer may see as one unit, so a text may not be cut between the two.
_PREPEND = frozenset(
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e\U000110bd\U000110cd\U000111c2\U000111c3"
    "\U000113d1\U0001193f\U00011941\U00011a3a\U00011a84\U00011a85\U00011a86\U00011a87\U00011a88\U00011a89\U00011d46"
    "\U00011f02"
)


_Respelled = tuple[NDArray[np.int32], bool]
"""A text's ids, and whether a piece of it was dropped."""


class OnTruncate(StrEnum):
    """What to do with a text of more than max_length tokens."""

    TRUNCATE = "truncate"
    ERROR = "error"


@dataclass(frozen=True)
class TokenizedTexts:
    """S texts as ids.

    `ids[s]` is (L,) int32 and includes both special tokens; `is_cut` is (S,), whether a text lost tokens.
    `is_respelled` is (S,), whether a text has a piece that this bundle dropped, so that its ids are not the full
    model's; None where nothing was dropped.
    """

    ids: tuple[NDArray[np.int32], ...]
    is_cut: NDArray[np.bool_]
    is_respelled: NDArray[np.bool_] | None = None

    @property
    def out_of_vocabulary(self) -> int:
        """How many texts have a piece that this bundle dropped."""
        return 0 if self.is_respelled is None else int(self.is_respelled.sum())

    @property
    def truncated(self) -> int:
        """How many texts were cut."""
        return int(self.is_cut.sum())

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(S,) int64: tokens of each text, both special tokens included."""
        return np.fromiter((len(row) for row in self.ids), dtype=np.int64, count=len(self.ids))


def joined(parts: Sequence[TokenizedTexts]) -> TokenizedTexts:
    """The texts of one or more parts, all by one tokenizer."""
    respelled = [part.is_respelled for part in parts if part.is_respelled is not None]
    return TokenizedTexts(
        tuple(row for part in parts for row in part.ids),
        np.concatenate([part.is_cut for part in parts]),
        np.concatenate(respelled) if respelled else None,
    )


@dataclass(frozen=True)
class Piece:
    """One token of a text: its id, and its characters, `text[start:stop]`; a special token has none, and its name."""

    id: int
    text: str
    is_special: bool
    start: int
    stop: int


class M3Tokenizer:
    """The bundle's tokenizer. Safe to use from several threads: nothing that matters changes after `open`."""

    def __init__(self, spec: Mapping[str, Any], info: TokenizerInfo, fewer: FewerPieces | None = None) -> None:
        """Make the pipeline of what tokenizer.json holds, and what the manifest says of it.

        `fewer` are the pieces, instead of those of `spec`, where not all have a row. A text with none that was dropped
        gets the full vocabulary's ids; another one those that are left, and is counted.

        Raises:
            BundleFormatError: it wraps a text in other special ids than `info` names.
            Exception: anything else is wrong with it; the package raises bare Exception.
        """
        from tokenizers import Tokenizer

        model, added = spec["model"], spec["added_tokens"]
        if model["type"] != "Unigram" or model.get("byte_fallback"):
            raise ValueError(f"its model is {model['type']}, expected XLM-R's: Unigram without byte_fallback")
        vocab, self._dropped = model["vocab"], None if fewer is None else fewer.dropped
        self._names = [piece for piece, _ in vocab] if fewer is None else fewer.names
        scores = [score for _, score in vocab] if fewer is None else array("d", fewer.scores.tobytes())
        self._unigram = Unigram(self._names, scores, model["unk_id"])
        self._full = self._unigram if self._dropped is None else self._unigram.with_pieces(self._dropped)
        rest = {**spec, "truncation": None, "padding": None, "model": _NO_PIECES}
        self._words = Tokenizer.from_str(json.dumps(rest))
        self._added_names = {int(token["id"]): str(token["content"]) for token in added}
        self.special_ids = frozenset(int(token["id"]) for token in added if token.get("special"))
        self._is_dropped = np.ones(max(len(self._names), *self._added_names, 0) + 2, np.bool_)  # so are ids of no piece
        self._is_dropped[: len(self._names)] = self._is_dropped[list(self._added_names)] = False
        if self._dropped is not None:
            self._is_dropped[self._dropped.ids] = True
        self._drops = self._is_dropped.tobytes()  # of single ids it is asked faster
        self._added = {self._words.token_to_id(name): number for number, name in self._added_names.items()}
        has_blanks = any(character.isspace() for name in self._added_names.values() for character in name)
        self._blanks = () if has_blanks else tuple(blank for blank in (" ", "\n") if _splits_at(self._words, blank))
        self.info = info
        if (wrapped := self._words.encode("").ids) != [info.cls_id, info.eos_id]:
            raise BundleFormatError(
                f"the tokenizer turns an empty text into {wrapped}, the manifest says "
                f"{[info.cls_id, info.eos_id]}; export the bundle again"
            )

    @classmethod
    def open(cls, path: str | Path, info: TokenizerInfo, pieces: Path | None = None) -> "M3Tokenizer":
        """Read a tokenizer.json; or one without pieces, and the file that has them.

        Raises:
            BundleDamagedError: a file cannot be read as what it is.
            BundleFormatError: it does not wrap a text in the special ids that `info` names.
        """
        try:
            spec = json.loads(Path(path).read_bytes())
            return cls(spec, info, None if pieces is None else FewerPieces.open(pieces))
        except (BundleFormatError, BundleDamagedError):
            raise
        except Exception as error:  # see __init__
            raise BundleDamagedError(
                f"{str(path)!r} is not a tokenizer that this release reads ({error}); export the bundle again"
            ) from error

    @property
    def vocab_size(self) -> int:
        """How many ids the pipeline knows, added tokens included."""
        return len(self._names) + sum(number >= len(self._names) for number in self._added_names)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included, as `convert_id_to_token` shows it."""
        names = [self._added_names.get(number) or self._names[number] or self._dropped_name(number) for number in ids]
        decoder = self._words.decoder
        return str(decoder.decode(names)) if decoder is not None else " ".join(names)

    def pieces(self, text: str, *, with_specials: bool = True) -> tuple[Piece, ...]:
        """The tokens of a text that has passed `check_text`, with their places; nothing is cut."""
        # encode_batch, since encode would keep all other threads waiting meanwhile
        words, characters = (
            each.encode_batch([text], add_special_tokens=with_specials)[0] for each in (self._words, self._characters)
        )
        places, pieces = iter(characters.offsets), []
        for number, word, is_special in zip(words.ids, words.tokens, words.special_tokens_mask, strict=True):
            if is_special or number != _WORD:
                start, stop = next(places)
                index = number if is_special else self._added[number]
                pieces.append(Piece(index, word if is_special else text[start:stop], bool(is_special), start, stop))
                continue
            inside = list(islice(places, len(word)))
            for index, first, end in self._pieces(word):
                start, stop = inside[first][0], inside[end - 1][1]
                pieces.append(Piece(index, text[start:stop], False, start, stop))
        return tuple(pieces)

    def check_ids(self, ids: NDArray[np.int32], name: str) -> None:
        """Refuse ids that have no embedding row; `name` is how the error calls the text.

        Raises:
            InputError: an id is of a piece that this bundle dropped.
        """
        if self._dropped is None:
            return
        found = np.flatnonzero(self._is_dropped[np.minimum(ids, len(self._is_dropped) - 1)])
        if found.size:
            number = int(ids[found[0]])
            raise InputError(
                f"{name} has the id {number} ({self._dropped.text_of(number)!r}), a piece that this bundle of fewer "
                "pieces dropped; send the text, or use a bundle with the whole vocabulary"
            )

    def _pieces(self, word: str) -> Sequence[tuple[int, int, int]]:
        """(id, start, stop) of a word's pieces, by the full vocabulary if all of them are left."""
        pieces = tuple(self._full.pieces(word))
        return tuple(self._unigram.pieces(word)) if self._lacks(number for number, _, _ in pieces) else pieces

    def _lacks(self, ids: Iterable[int]) -> bool:
        return self._dropped is not None and any(map(self._drops.__getitem__, ids))

    def _dropped_name(self, number: int) -> str:
        return "" if self._dropped is None else self._dropped.text_of(number)

    @cached_property
    def _characters(self) -> Any:
        """The pipeline that makes a token of every character of a word: it knows where each comes from."""
        from tokenizers import Regex, Tokenizer
        from tokenizers.pre_tokenizers import Sequence as InOrder
        from tokenizers.pre_tokenizers import Split

        pipeline = Tokenizer.from_str(self._words.to_str())
        each = Split(Regex("(?m:.)"), "isolated")  # (?m) lets Oniguruma's dot match a line break
        pipeline.pre_tokenizer = InOrder([each] if pipeline.pre_tokenizer is None else [pipeline.pre_tokenizer, each])
        return pipeline

    def encode_batch(
        self, texts: Sequence[str], max_length: int, on_truncate: OnTruncate = OnTruncate.TRUNCATE
    ) -> TokenizedTexts:
        """Tokenize S texts; `texts` has passed `checked_texts`.

        A text of more than `max_length` tokens keeps its first max_length - 1 ids and `</s>`.

        Raises:
            TextTooLongError: `on_truncate` is "error" and a text is too long; the first such text is named.
        """
        rows: list[NDArray[np.int32]] = []
        is_cut: list[bool] = []
        is_respelled: list[bool] = []
        for run in greedy_runs(map(len, texts), _GROUP):
            group = texts[run.start : run.stop]
            for text, (ids, lacks) in zip(group, self._leading_ids(group, max_length), strict=True):
                is_long = ids.size > max_length
                if is_long and on_truncate is OnTruncate.ERROR:
                    raise self._too_long(text, len(rows), max_length)
                rows.append(self._cut(ids, max_length) if is_long else ids)
                is_cut.append(is_long)
                is_respelled.append(lacks)
        respelled = None if self._dropped is None else np.array(is_respelled, np.bool_)
        return TokenizedTexts(tuple(rows), np.array(is_cut, np.bool_), respelled)

    def _leading_ids(self, texts: Sequence[str], max_length: int) -> list[_Respelled]:
        """Per text: all its ids, or of a much longer text exact leading ids (over `max_length`), `</s>`.

        A long text's prefix doubles until it gives more than `max_length` ids, or is the whole text.
        """
        limit = max(_MIN_PREFIX_CHARS, max_length * _CHARS_PER_TOKEN)
        rows: dict[int, _Respelled] = {}
        while missing := [i for i in range(len(texts)) if i not in rows]:
            prefixes = [self._prefix(texts[i], limit) for i in missing]
            for i, prefix, found in zip(missing, prefixes, self._ids(prefixes, max_length), strict=True):
                if found[0].size > max_length or len(prefix) == len(texts[i]):
                    rows[i] = found
            limit *= 2
        return [rows[i] for i in range(len(texts))]

    def _ids(self, texts: Sequence[str], max_length: int) -> list[_Respelled]:
        """Per text: all its ids, or if they are more than `max_length`, at least that many."""
        encoded = self._words.encode_batch(list(texts), add_special_tokens=False)
        return [self._wrapped(found, max_length) for found in encoded]

    def _wrapped(self, found: Any, max_length: int) -> _Respelled:
        """Ids by the full vocabulary, unless one that is to be encoded was dropped: then by what is left."""
        inner = self._inner_ids(found, max_length, self._full)
        lacks = self._lacks(inner[: max_length - SPECIALS])
        if lacks:
            inner = self._inner_ids(found, max_length, self._unigram)
        return np.array((self.info.cls_id, *inner, self.info.eos_id), dtype=np.int32), lacks

    def _inner_ids(self, found: Any, limit: int, unigram: Unigram) -> list[int]:
        """Ids of the words and special tokens that the pipeline found: all, or at least `limit`."""
        if not any(found.ids):  # words alone
            return unigram.ids(found.tokens, limit)
        ids: list[int] = []
        for number, word in zip(found.ids, found.tokens, strict=True):
            ids += [self._added[number]] if number != _WORD else unigram.ids([word], limit)
            if len(ids) >= limit:
                break
        return ids

    def _prefix(self, text: str, limit: int) -> str:
        """At most about `limit` characters of `text`, cut where the ids before the cut cannot change.

        Why that is exact: the pipeline splits at blanks before the vocabulary is looked at, and each split is
        tokenized alone. So the ids of "a b" are those of "a" followed by those of " b", provided the cut is
        right before a run of blanks (blanks normalize as a run) and not inside a grapheme (they normalize as
        a unit). Added tokens take blanks on their left at most up to the cut, which yields no id; where one holds
        a blank itself, no blank is usable. A text without a usable blank is taken whole.
        """
        if len(text) <= 2 * limit or not self._blanks:
            return text
        end = limit
        while (end := max(text.rfind(blank, 0, end) for blank in self._blanks)) > 0:
            before = text[end - 1]
            if not before.isspace() and before not in _PREPEND and before.isprintable():
                return text[:end]
        return text

    def _cut(self, ids: NDArray[np.int32], max_length: int) -> NDArray[np.int32]:
        cut = ids[:max_length].copy()  # a copy: a view would keep the long text's ids alive
        cut[-1] = self.info.eos_id
        return cut

    def _too_long(self, text: str, index: int, max_length: int) -> TextTooLongError:
        return TextTooLongError(f"text {index}", index, self._ids([text], sys.maxsize)[0][0].size, max_length)


def checked_texts(sentences: object) -> list[str]:
    """The texts of a list, an iterator, a 1-D array or a column of a table (see `listed`), each one checked.

    Raises:
        InputError: it has no order or is a table, or an item is not a text that can be tokenized; its index is named.
    """
    texts = listed(sentences, "expected a text or a list of texts")
    for index, text in enumerate(texts):
        check_text(text, f"text {index}")
    return texts


def check_text(text: object, name: str) -> None:
    """Refuse what is not a text, or holds half a surrogate pair; `name` is how the error calls it.

    Raises:
        InputError: not a str, or a str with a lone surrogate.
    """
    if not isinstance(text, str):
        raise InputError(f"{name} must be a str, got {_kind(text)}")
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} has a lone surrogate (U+{ord(text[error.start]):04X}) at position {error.start}, "
            "which no tokenizer can read; repair it with "
            'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
        ) from error


def _kind(item: object) -> str:
    """The type of what is no text, and its shape: a row of a 2-D array is not a text of one word."""
    shape = getattr(item, "shape", ())
    return type(item).__name__ + (f" of shape {tuple(shape)}" if isinstance(shape, tuple) and shape else "")


def _splits_at(pipeline: Any, blank: str) -> bool:
    """Whether the pipeline splits at this blank before it looks at the vocabulary: it is asked."""
    if pipeline.pre_tokenizer is None:
        return False
    text = f"a{blank}b"
    normal = pipeline.normalizer.normalize_str(text) if pipeline.normalizer is not None else text
    return len(pipeline.pre_tokenizer.pre_tokenize_str(normal)) == 2
