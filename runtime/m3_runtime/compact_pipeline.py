"""A tokenizer.json in a fraction of the memory: 17 MB rather than 270 for XLM-R's vocabulary.

Everything but the Unigram model stays the package's: special tokens in texts, normalizer, pre-tokenizer, decoder. In
the model's place it gets one that spells every word in bytes (BPE without merges, with byte fallback); `unigram` makes
pieces of them. Single-threaded, and about half as fast on two cores.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.unigram import Unigram

Ids = NDArray[np.int32]

_WORD_START = "▁".encode()
# Bounds on what is worked on at once. A word longer than this (a text without blanks) is left to the whole pipeline,
# since the search takes a step for each of its characters.
_LONGEST_WORD = 2**16
_WORK_BYTES = 2**18
_MOST_VOCABULARY_BYTES = 2**23  # the trie numbers its nodes in 23 bits


@dataclass(frozen=True)
class _Vocabulary:
    """Pieces as text, one after the other: piece i is `text[bounds[i]:bounds[i + 1]]`."""

    text: bytes
    bounds: NDArray[np.int32]

    @classmethod
    def of(cls, pieces: Sequence[bytes]) -> "_Vocabulary":
        bounds = np.cumsum([0, *map(len, pieces)], dtype=np.int32)
        return cls(b"".join(pieces), bounds)

    def __getitem__(self, number: int) -> str:
        return self.text[self.bounds[number] : self.bounds[number + 1]].decode()


class CompactPipeline:
    """A pipeline of the package tokenizers with its Unigram model replaced. Safe to use from several threads."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        """Take over a tokenizer.json that `is_compactable`; its vocabulary is taken out of `content`."""
        from tokenizers import Tokenizer

        model = content["model"]
        pieces = [piece.encode() for piece, _ in model["vocab"]]
        self._unigram = Unigram(pieces, [score for _, score in model["vocab"]], model["unk_id"])
        self._vocabulary = _Vocabulary.of(pieces)
        self._added = {token["id"]: token["content"] for token in content["added_tokens"]}
        self._first_byte = _room_for_bytes(self._added)
        content["model"] = _spelling_model(self._added, self._first_byte)
        self._spelling = Tokenizer.from_str(json.dumps(content))
        self._whole, self._lock = cache(lambda: _opened(path)), threading.Lock()

    @property
    def normalizer(self) -> Any:
        """The package's."""
        return self._spelling.normalizer

    @property
    def pre_tokenizer(self) -> Any:
        """The package's."""
        return self._spelling.pre_tokenizer

    @property
    def vocab_size(self) -> int:
        """How many ids the pipeline knows, added tokens included."""
        pieces = self._vocabulary.bounds.size - 1
        return pieces + sum(1 for number in self._added if number >= pieces)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Each text's ids, (L,), special tokens included."""
        is_short = [len(text) <= _LONGEST_WORD or max(map(len, text.split())) <= _LONGEST_WORD for text in texts]
        spelled = self._spelling.encode_batch_fast([text for text, short in zip(texts, is_short, strict=True) if short])
        streams = [np.array(item.ids, dtype=np.int32) for item in spelled]
        short = iter(self._pieces(streams))
        return [next(short) if s else self._encode_whole(text) for text, s in zip(texts, is_short, strict=True)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included."""
        return str(self._spelling.decoder.decode([self._added.get(i) or self._vocabulary[i] for i in ids]))

    def _pieces(self, streams: Sequence[Ids]) -> list[Ids]:
        """Streams of bytes and special tokens to ids; a word that occurs several times is searched once."""
        places: dict[bytes, int] = {}
        texts = [self._parts(stream, places) for stream in streams]
        words = [ids for some in _runs(list(places)) for ids in self._unigram.segment(some)]
        return [np.concatenate([words[part] if part >= 0 else _special(part) for part in text]) for text in texts]

    def _parts(self, stream: Ids, places: dict[bytes, int]) -> list[int]:
        """A stream as places of words in `places`, which grows, and -1 - id for special tokens."""
        is_byte = (stream >= self._first_byte) & (stream < self._first_byte + 256)
        parts: list[int] = []
        start = 0
        for end in [*np.flatnonzero(~is_byte).tolist(), stream.size]:
            spelled = (stream[start:end] - self._first_byte).astype(np.uint8).tobytes()
            parts += [places.setdefault(word, len(places)) for word in _words(spelled)]
            parts += [-1 - int(stream[end])] if end < stream.size else []
            start = end + 1
        return parts

    def _encode_whole(self, text: str) -> Ids:
        """With the package's own model, which is loaded when it is first needed."""
        with self._lock:
            whole = self._whole()
        return np.array(whole.encode_batch_fast([text])[0].ids, dtype=np.int32)


def is_compactable(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is a plain Unigram one over words that begin with ▁, as XLM-R's is."""
    model, steps = content.get("model") or {}, content.get("pre_tokenizer") or {}
    last = (steps.get("pretokenizers") or [steps])[-1]
    vocabulary = (model.get("vocab") if model.get("type") == "Unigram" else None) or ()
    return bool(
        vocabulary
        and isinstance(model.get("unk_id"), int)
        and not model.get("byte_fallback")
        and last.get("type") == "Metaspace"
        and last.get("replacement") == _WORD_START.decode()
        and last.get("split", True)
        and content.get("decoder") is not None
        and all(len(token["content"]) > 1 for token in content["added_tokens"])
        and not any("\0" in piece for piece, _ in vocabulary)
        and sum(len(piece.encode()) for piece, _ in vocabulary) < _MOST_VOCABULARY_BYTES
    )


def _opened(path: Path) -> Any:
    from tokenizers import Tokenizer

    pipeline = Tokenizer.from_file(str(path))
    pipeline.no_truncation()
    pipeline.no_padding()
    return pipeline


def _room_for_bytes(taken: dict[int, str]) -> int:
    """The lowest run of 256 ids without a special token: low, since Python shares its objects for small integers."""
    return next(first for first in range(len(taken) * 256 + 1) if not any(first <= i < first + 256 for i in taken))


def _spelling_model(added: dict[int, str], first_byte: int) -> dict[str, Any]:
    vocabulary = {f"<0x{byte:02X}>": first_byte + byte for byte in range(256)}
    vocabulary |= {content: number for number, content in added.items()}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": [],
    }


def _words(spelled: bytes) -> list[bytes]:
    """Bytes between special tokens as words: each begins with ▁, but for what stands before the first."""
    first, *rest = spelled.split(_WORD_START)
    return ([first] if first else []) + [_WORD_START + word for word in rest]


def _special(part: int) -> Ids:
    return np.array([-1 - part], dtype=np.int32)


def _runs(words: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Words in runs of bounded size: the search holds some hundred bytes for each of theirs."""
    start = size = 0
    for i, word in enumerate(words):
        if i > start and size + len(word) > _WORK_BYTES:
            yield words[start:i]
            start, size = i, 0
        size += len(word)
    if start < len(words):
        yield words[start:]
