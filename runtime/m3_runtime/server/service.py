"""Texts of a request to vectors: what every route does, whatever its wire format."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import checked_max_length
from m3_runtime.encode.sparse import SparseVectors
from m3_runtime.errors import HeadError, RequestTooLargeError, TextTooLongError
from m3_runtime.server.backend import Backend, TextVectors
from m3_runtime.server.batcher import Batcher
from m3_runtime.server.inputs import Texts, TokenIds, checked_ids, too_long
from m3_runtime.server.metrics import Metrics
from m3_runtime.server.queue import Ids
from m3_runtime.server.settings import ServerSettings
from m3_runtime.tokenizer import OnTruncate

T = TypeVar("T")

# Handing so little to another thread would take longer than tokenizing it.
_FEW_CHARS = 4096
_MANY_CHARS = 2**17
_SHOWN_SHARE = 16
"""Of a body that is long enough, one part in so many may be texts whose tokens are shown: that takes far more room."""

_SIZES_KEPT = 0.99
_MOST_GUESSED = 8
"""A body counts for no more than one part in so many of the queue until its texts are known: they may be cut."""


@dataclass(frozen=True)
class Call:
    """Who asks, how long there is for it, and how many bytes its body was announced to have (0: not announced)."""

    client: str
    deadline_s: float
    body_bytes: int


@dataclass(frozen=True)
class Cut:
    """How long a text may be, and what becomes of longer ones."""

    max_length: int
    on_truncate: OnTruncate


@dataclass(frozen=True)
class _Tokenized:
    ids: tuple[Ids, ...]
    truncated: int

    @property
    def tokens(self) -> int:
        return sum(row.size for row in self.ids)


@dataclass
class _Sizes:
    """How many tokens a byte of a body stands for, by the last hundred requests or so; 0 as long as there was none."""

    tokens: float = 0.0
    body_bytes: float = 0.0

    def note(self, tokens: int, body_bytes: int) -> None:
        if body_bytes:
            self.tokens = _SIZES_KEPT * self.tokens + tokens
            self.body_bytes = _SIZES_KEPT * self.body_bytes + body_bytes

    def guess(self, body_bytes: int) -> int:
        return int(body_bytes * self.tokens / self.body_bytes) if self.body_bytes else 0


class Service:
    """A loaded variant, its batcher and its counts. Belongs to one event loop."""

    def __init__(self, backend: Backend, settings: ServerSettings) -> None:
        """Take over an open backend.

        Raises:
            InputError: the settings' `max_length` is more than the model takes.
        """
        manifest = backend.bundle.manifest
        longest = settings.max_length or manifest.geometry.max_tokens
        self.backend = backend
        self.settings = settings
        self.max_length = checked_max_length(longest, manifest.geometry.max_tokens, "max_length")
        self.model_name = settings.model_name or manifest.source.name
        self.metrics = Metrics.of(backend)
        engine = backend.engine
        self.batcher = Batcher(backend, settings.limits.queue, self.metrics, engine.streams, engine.packed_tokens)
        self.is_draining = False
        self._sizes = _Sizes()
        self._aside = ThreadPoolExecutor(1, "m3-tokenizer")
        self._far_aside = ThreadPoolExecutor(1, "m3-long-tokenizer")

    def cut(self, is_truncating: bool | None = None, max_length: int | None = None) -> Cut:
        """How long texts may be; None is what the server was started with.

        Raises:
            InputError: `max_length` is more than the server takes, or too small.
        """
        length = checked_max_length(max_length or self.max_length, self.max_length, "max_length")
        if is_truncating is None:
            return Cut(length, self.settings.on_truncate)
        return Cut(length, OnTruncate.TRUNCATE if is_truncating else OnTruncate.ERROR)

    def check_room(self, call: Call) -> None:
        """Refuse a request that will not be served, before its body is looked at: saying no must cost next to nothing.

        Raises:
            ServiceError: the server is busy, or about to stop.
        """
        most = self.batcher.limits.max_tokens // _MOST_GUESSED
        self.batcher.check_room(min(most, self._sizes.guess(call.body_bytes)), call.client, call.deadline_s)

    async def encode(self, texts: Texts, name: str, heads: tuple[Head, ...], cut: Cut, call: Call) -> Encoding:
        """The vectors of S texts, in their order.

        Args:
            texts: the texts.
            name: what errors call them.
            heads: heads that are wanted.
            cut: how long they may be.
            call: who asks, and how long there is for it.

        Raises:
            HeadError: the bundle has no such head.
            InputError: a token id is none.
            RequestTooLargeError: too many texts, too many tokens, or a text is too long.
            ServiceError: the server is busy, about to stop, or too late.
            EngineError: the engine failed.
        """
        self._check(texts, heads, call)
        start_s = time.perf_counter()
        tokenized = await self._tokenized(texts, name, cut)
        used_s = time.perf_counter() - start_s
        self.metrics.tokenize_seconds.observe(used_s)
        self._sizes.note(tokenized.tokens, call.body_bytes)
        vectors = await self.batcher.encode(tokenized.ids, heads, call.client, max(0.001, call.deadline_s - used_s))
        self.metrics.truncated.inc(tokenized.truncated)
        return self._encoding(vectors, tokenized, heads)

    async def show_tokens(self, texts: Sequence[str], work: Callable[[], T]) -> T:
        """Do something with the tokens of S texts, in another thread; they have passed `check_text`.

        Raises:
            RequestTooLargeError: too many texts, or too long ones.
        """
        self._check_number(len(texts))
        chars, most = sum(map(len, texts)), self.settings.limits.max_body_bytes // _SHOWN_SHARE
        if chars > most:
            raise RequestTooLargeError(f"the texts have {chars} characters, the limit is {most}; send them in parts")
        return await self._run_aside(chars, work)

    def _check(self, texts: Texts, heads: tuple[Head, ...], call: Call) -> None:
        for head in heads:
            if head not in self.backend.bundle.manifest.heads:
                names = ", ".join(h.value for h in self.backend.bundle.manifest.heads)
                raise HeadError(f"the model has no {head.value} head; it has: {names}")
        self._check_number(len(texts.items))
        # Every text is two tokens at least. Who cannot be served is told before work is done for him.
        self.batcher.check_room(2 * len(texts.items), call.client, call.deadline_s)

    def _check_number(self, texts: int) -> None:
        most = self.settings.limits.max_texts
        if texts > most:
            raise RequestTooLargeError(f"the request has {texts} texts, the limit is {most}; send it in parts")

    async def _tokenized(self, texts: Texts, name: str, cut: Cut) -> _Tokenized:
        chars = sum(len(item) for item in texts.items)
        if chars <= _FEW_CHARS:
            return self._to_ids(texts.items, name, cut)
        return await self._run_aside(chars, lambda: self._to_ids(texts.items, name, cut))

    async def _run_aside(self, chars: int, work: Callable[[], T]) -> T:
        """Do something with so many characters in another thread. Megabytes take seconds, and keep nobody waiting."""
        threads = self._aside if chars <= _MANY_CHARS else self._far_aside
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def _to_ids(self, items: Sequence[str | TokenIds], name: str, cut: Cut) -> _Tokenized:
        rows: list[Ids | None] = [None] * len(items)
        words = [i for i, item in enumerate(items) if isinstance(item, str)]
        try:
            tokenized = self.backend.tokenize(
                [item for item in items if isinstance(item, str)], cut.max_length, cut.on_truncate
            )
        except TextTooLongError as error:
            raise too_long(_nth(name, words[error.index]), error.tokens, error.max_length) from error
        for i, ids in zip(words, tokenized.ids, strict=True):
            rows[i] = ids
        truncated = tokenized.truncated
        for i, item in enumerate(items):
            if not isinstance(item, str):
                rows[i], is_cut = self._given_ids(item, _nth(name, i), cut)
                truncated += is_cut
        return _Tokenized(tuple(row for row in rows if row is not None), truncated)

    def _given_ids(self, item: TokenIds, name: str, cut: Cut) -> tuple[Ids, bool]:
        manifest = self.backend.bundle.manifest
        ids = checked_ids(item, name, manifest.tokenizer, manifest.geometry.vocab_size)
        if ids.size <= cut.max_length:
            return ids, False
        if cut.on_truncate is OnTruncate.ERROR:
            raise too_long(name, ids.size, cut.max_length)
        return np.append(ids[: cut.max_length - 1], np.int32(manifest.tokenizer.eos_id)), True

    def _encoding(self, vectors: Sequence[TextVectors], tokenized: _Tokenized, heads: tuple[Head, ...]) -> Encoding:
        return Encoding(
            dense_vecs=_stacked(vectors) if Head.DENSE in heads else None,
            sparse=_sparse(vectors, self.backend.bundle.manifest.geometry.vocab_size) if Head.SPARSE in heads else None,
            colbert_vecs=[v.colbert for v in vectors if v.colbert is not None] if Head.COLBERT in heads else None,
            token_counts=np.array([row.size for row in tokenized.ids], np.int64),
            truncated=tokenized.truncated,
            is_single=False,
        )

    async def close(self) -> None:
        """Finish what was taken, then let go of everything."""
        self.is_draining = True
        await self.batcher.drain()
        self.batcher.close()
        self._aside.shutdown()
        self._far_aside.shutdown()
        self.backend.close()


def _nth(name: str, index: int) -> str:
    return f"{name}[{index}]"


def _stacked(vectors: Sequence[TextVectors]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.stack([v.dense for v in vectors if v.dense is not None])


def _sparse(vectors: Sequence[TextVectors], vocab_size: int) -> SparseVectors:
    rows = [v.lexical for v in vectors if v.lexical is not None]
    return SparseVectors(
        indptr=np.concatenate(([0], np.cumsum([len(ids) for ids, _ in rows]))).astype(np.int64),
        ids=np.concatenate([ids for ids, _ in rows]),
        weights=np.concatenate([weights for _, weights in rows]),
        vocab_size=vocab_size,
    )
