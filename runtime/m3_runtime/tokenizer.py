"""Text to token ids: the checkpoint's own pipeline, with truncation done here.

The `tokenizers` package can truncate and pad by itself, but that is state on a shared object: setting it per
call from several threads fails ("Already borrowed") or gives another call's lengths. So both are switched off
once, at open, and never touched again; ids are cut here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.errors import BundleDamagedError, BundleFormatError, InputError, TextTooLongError
from m3_runtime.manifest import TokenizerInfo

SPECIALS = 2
"""Every text is wrapped in <s> and </s>."""

# Bounds on what is tokenized at once: an Encoding of the package costs about 100 bytes a token.
_GROUP_TEXTS = 256
_GROUP_CHARS = 1_000_000

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


class OnTruncate(StrEnum):
    """What to do with a text of more than max_length tokens."""

    TRUNCATE = "truncate"
    ERROR = "error"


@dataclass(frozen=True)
class TokenizedTexts:
    """S texts as ids.

    `ids[s]` is (L,) int32 and includes both special tokens; `is_cut` is (S,), whether a text lost tokens.
    """

    ids: tuple[NDArray[np.int32], ...]
    is_cut: NDArray[np.bool_]

    @property
    def truncated(self) -> int:
        """How many texts were cut."""
        return int(self.is_cut.sum())

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(S,) int64: tokens of each text, both special tokens included."""
        return np.fromiter((len(row) for row in self.ids), dtype=np.int64, count=len(self.ids))


@dataclass(frozen=True)
class Piece:
    """One token of a text: its id, and its characters, `text[start:stop]`; a special token has none, and its name."""

    id: int
    text: str
    is_special: bool
    start: int
    stop: int


class M3Tokenizer:
    """The bundle's tokenizer. Safe to use from several threads: nothing changes after `open`."""

    def __init__(self, pipeline: Any, info: TokenizerInfo) -> None:
        self._pipeline = pipeline
        self._blanks = tuple(blank for blank in (" ", "\n") if _splits_at(pipeline, blank))
        self.info = info

    @classmethod
    def open(cls, path: str | Path, info: TokenizerInfo) -> "M3Tokenizer":
        """Read a tokenizer.json.

        Raises:
            BundleDamagedError: the file cannot be read as a tokenizer.
            BundleFormatError: its pipeline does not wrap a text in the special ids that `info` names.
        """
        from tokenizers import Tokenizer

        try:
            pipeline = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises bare Exception
            raise BundleDamagedError(f"{str(path)!r} is not a tokenizer ({error}); export the bundle again") from error
        pipeline.no_truncation()
        pipeline.no_padding()
        wrapped = pipeline.encode("").ids
        if wrapped != [info.cls_id, info.eos_id]:
            raise BundleFormatError(
                f"{str(path)!r} turns an empty text into {wrapped}, the manifest says "
                f"{[info.cls_id, info.eos_id]}; export the bundle again"
            )
        return cls(pipeline, info)

    @property
    def vocab_size(self) -> int:
        """How many ids the pipeline knows, added tokens included."""
        return int(self._pipeline.get_vocab_size())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included, as `convert_id_to_token` shows it."""
        return str(self._pipeline.decode(list(ids), skip_special_tokens=False))

    def pieces(self, text: str, *, with_specials: bool = True) -> tuple[Piece, ...]:
        """The tokens of a text that has passed `check_text`, with their places; nothing is cut."""
        # encode_batch, since encode would keep all other threads waiting meanwhile
        found = self._pipeline.encode_batch([text], add_special_tokens=with_specials)[0]
        rows = zip(found.ids, found.tokens, found.special_tokens_mask, found.offsets, strict=True)
        return tuple(
            Piece(
                id=number, text=name if special else text[start:stop], is_special=bool(special), start=start, stop=stop
            )
            for number, name, special, (start, stop) in rows
        )

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
        for group in _groups(texts):
            for text, ids in zip(group, self._leading_ids(group, max_length), strict=True):
                is_long = ids.size > max_length
                if is_long and on_truncate is OnTruncate.ERROR:
                    raise self._too_long(text, len(rows), max_length)
                rows.append(self._cut(ids, max_length) if is_long else ids)
                is_cut.append(is_long)
        return TokenizedTexts(ids=tuple(rows), is_cut=np.array(is_cut, dtype=np.bool_))

    def _leading_ids(self, texts: Sequence[str], max_length: int) -> list[NDArray[np.int32]]:
        """Per text: all its ids, or of a much longer text exact leading ids (over `max_length`), `</s>`."""
        limit = max(_MIN_PREFIX_CHARS, max_length * _CHARS_PER_TOKEN)
        prefixes = [self._prefix(text, limit) for text in texts]
        encoded = self._pipeline.encode_batch_fast(prefixes)
        rows = [np.array(item.ids, dtype=np.int32) for item in encoded]
        for i, text in enumerate(texts):
            if rows[i].size <= max_length and len(prefixes[i]) < len(text):
                rows[i] = self._longer_prefix(text, max_length, limit)
        return rows

    def _longer_prefix(self, text: str, max_length: int, limit: int) -> NDArray[np.int32]:
        """Double the prefix until it yields more than `max_length` ids or is the whole text."""
        while True:
            limit *= 2
            prefix = self._prefix(text, limit)
            ids = np.array(self._pipeline.encode_batch_fast([prefix])[0].ids, dtype=np.int32)
            if ids.size > max_length or len(prefix) == len(text):
                return ids

    def _prefix(self, text: str, limit: int) -> str:
        """At most about `limit` characters of `text`, cut where the ids before the cut cannot change.

        Why that is exact: the pipeline splits at blanks before the vocabulary is looked at, and each split is
        tokenized alone. So the ids of "a b" are those of "a" followed by those of " b", provided the cut is
        right before a run of blanks (blanks normalize as a run) and not inside a grapheme (they normalize as
        a unit). Special tokens take blanks on their left at most up to the cut, which yields no id. A text
        without a usable blank is taken whole.
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
        return TextTooLongError(f"text {index}", index, len(self._pipeline.encode_batch_fast([text])[0]), max_length)


def checked_texts(sentences: object) -> list[str]:
    """The texts of a list, tuple, array or other collection, each one checked.

    Raises:
        InputError: not a collection, or an item is not a text that can be tokenized; its index is named.
    """
    if isinstance(sentences, str | bytes | dict) or not hasattr(sentences, "__iter__"):
        raise InputError(f"expected a text or a list of texts, got {type(sentences).__name__}")
    texts = list(sentences)
    for index, text in enumerate(texts):
        check_text(text, f"text {index}")
    return texts


def check_text(text: object, name: str) -> None:
    """Refuse what is not a text, or holds half a surrogate pair; `name` is how the error calls it.

    Raises:
        InputError: not a str, or a str with a lone surrogate.
    """
    if not isinstance(text, str):
        raise InputError(f"{name} must be a str, got {type(text).__name__}")
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


def _groups(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start, chars = 0, 0
    for i, text in enumerate(texts):
        if i > start and (i - start >= _GROUP_TEXTS or chars + len(text) > _GROUP_CHARS):
            yield texts[start:i]
            start, chars = i, 0
        chars += len(text)
    if start < len(texts):
        yield texts[start:]


def _splits_at(pipeline: Any, blank: str) -> bool:
    """Whether the pipeline splits at this blank before it looks at the vocabulary: it is asked."""
    if pipeline.pre_tokenizer is None:
        return False
    text = f"a{blank}b"
    normal = pipeline.normalizer.normalize_str(text) if pipeline.normalizer is not None else text
    return len(pipeline.pre_tokenizer.pre_tokenize_str(normal)) == 2
