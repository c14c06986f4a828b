"""Texts of a request to vectors: what every route does, whatever its format."""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np

from m3_runtime.bundle.manifest import Head, Manifest
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import checked_heads, checked_max_length
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError, QueueFullError, RequestTooLargeError, TextTooLongError
from m3_runtime.server.batcher import Batcher
from m3_runtime.server.kept import KeptVectors
from m3_runtime.server.metrics import Metrics
from m3_runtime.server.queue import Ids
from m3_runtime.server.schemas import Texts, TokenIds
from m3_runtime.server.settings import MIB, ServerSettings
from m3_runtime.server.shares import Shares
from m3_runtime.splitting import RunLimit, greedy_runs
from m3_runtime.tokenizer import OnTruncate

_T = TypeVar("_T")

_FIRST_TEXT = "What is BGE M3? And what is it good for?"

# Handing so little to another thread would take longer than tokenizing it.
_FEW_CHARS = 4096
_MANY_CHARS = 2**17
_MOST_CHARS = 2**21
"""Of one text. Without blanks, so many take seconds to tokenize and some hundred MiB."""
_SHOWN_SHARE = 16
"""/tokenize takes texts of one sixteenth of the longest body: a token takes far more room in its answer."""

_BYTES_PER_TOKEN = 8
"""A token of a body takes about half of that, more if it is escaped."""
_BODY_SHARE = 8
"""Before its texts are known a body counts for at most one eighth of the queue: they may be truncated."""

_ANSWER_FACTOR = 2
"""Vectors are held twice: as they are, and in the answer."""
_TEXT_BYTES = 512
"""What a text takes beside its ids and vectors."""
_WEIGHT_BYTES = 12


@dataclass
class Call:
    """A request: who asks, the seconds left for the answer, the size of the body, and what is held for the answer."""

    client: str
    deadline_s: float
    body_bytes: int
    result_bytes: int = 0
    found: list[tuple[tuple[Ids, ...], frozenset[Head], Encoding]] = field(default_factory=list)


@dataclass(frozen=True)
class Truncation:
    """How long a text may be, and what becomes of a longer one."""

    max_length: int
    on_truncate: OnTruncate


@dataclass(frozen=True)
class _Tokenized:
    ids: tuple[Ids, ...]
    truncated: int


class Service:
    """An open encoder, its batcher and its counts. Belongs to one event loop."""

    def __init__(self, encoder: M3Encoder, settings: ServerSettings) -> None:
        """Take over an encoder, which `close` closes.

        Raises:
            InputError: the settings' `max_length` is more than the model takes.
        """
        self.encoder = encoder
        self.settings = settings
        self.max_length = checked_max_length(
            settings.max_length or encoder.max_tokens, encoder.max_tokens, "max_length"
        )
        self.model_name = settings.model_name or self.manifest.source.name
        self.metrics = Metrics(encoder)
        engine, limits = encoder.engine, settings.limits
        self._kept = KeptVectors(limits.max_kept_bytes, limits.kept_s)
        self._results = Shares(limits.max_result_bytes, limits.max_result_bytes // 2)
        self.batcher = Batcher(
            self._encode_batch, limits.queue, self.metrics, self._kept, engine.streams, engine.packed_tokens
        )
        self.is_draining = False
        self.on_stop: list[Callable[[], None]] = []
        self._tokenizing = ThreadPoolExecutor(1, "m3-tokenizer")
        self._tokenizing_much = ThreadPoolExecutor(1, "m3-long-tokenizer")

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.encoder.bundle.manifest

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call the model."""
        return self.model_name, self.manifest.source.name, self.manifest.space_id

    @property
    def client_batch_texts(self) -> int:
        """Texts a request, for clients that ask: with the longest texts, so many fit into the queue."""
        limits = self.settings.limits
        return max(1, min(limits.max_texts, limits.queue.max_tokens // self.max_length))

    def warm_up(self) -> None:
        """Encode a text. Engines pack weights when they first run: no client shall wait for it, and it takes memory.

        Raises:
            EngineError: the engine cannot run the graph.
        """
        self.encoder.encode_heads(_FIRST_TEXT, self.manifest.heads)

    def check_dimensions(self, dimensions: int | None) -> None:
        """Refuse shorter vectors.

        Raises:
            InputError: other than the model's own size.
        """
        size = self.manifest.geometry.hidden_size
        if dimensions is not None and dimensions != size:
            raise InputError(
                f"dimensions must be {size} or left out, got {dimensions}: the model was not trained for shorter "
                "vectors, and cutting them would silently cost accuracy"
            )

    def truncation(self, is_truncating: bool | None = None, max_length: int | None = None) -> Truncation:
        """How long texts may be; None is what the server was started with.

        Raises:
            InputError: `max_length` is more than the server takes, or too small.
        """
        length = checked_max_length(max_length or self.max_length, self.max_length, "max_length")
        if is_truncating is None:
            return Truncation(length, self.settings.on_truncate)
        return Truncation(length, OnTruncate.TRUNCATE if is_truncating else OnTruncate.ERROR)

    def check_room(self, call: Call) -> None:
        """Refuse a request that will not be served, before its body is parsed: refusing must cost next to nothing.

        How many tokens a body holds is guessed from its size. `encode` checks again with the true number.

        Raises:
            ServiceError: the server is busy, or about to stop.
        """
        most = self.settings.limits.queue.max_tokens // _BODY_SHARE
        self.batcher.check_room(min(most, call.body_bytes // _BYTES_PER_TOKEN), call.client, call.deadline_s)

    async def encode(
        self, texts: Texts, name: str, heads: frozenset[Head], truncation: Truncation, call: Call
    ) -> Encoding:
        """The vectors of S texts, in their order.

        Args:
            texts: the texts.
            name: what errors call them.
            heads: heads that are wanted.
            truncation: how long texts may be.
            call: who asks, and how long there is for it.

        Raises:
            HeadError: the bundle has no such head.
            InputError: a token id is none.
            RequestTooLargeError: too many texts, too many tokens, or a text is too long.
            ServiceError: the server is busy, about to stop, or too late.
            EngineError: the engine failed.
        """
        checked_heads(self.manifest, heads)
        self._check_number(len(texts))
        start_s = time.perf_counter()
        tokenized = await self._tokenized(texts, name, truncation)
        used_s = time.perf_counter() - start_s
        self.metrics.tokenize_seconds.observe(used_s)
        self._hold_results(tokenized.ids, heads, call)
        encoding = await self.batcher.encode(tokenized.ids, heads, call.client, max(0.001, call.deadline_s - used_s))
        call.found.append((tokenized.ids, heads, encoding))
        self.metrics.truncated.inc(tokenized.truncated)
        return replace(encoding, truncated=tokenized.truncated)

    def _hold_results(self, ids: Sequence[Ids], heads: frozenset[Head], call: Call) -> None:
        tokens, geometry = sum(row.size for row in ids), self.manifest.geometry
        dense = 4 * geometry.hidden_size * len(ids) if Head.DENSE in heads else 0
        sparse = _WEIGHT_BYTES * tokens if Head.SPARSE in heads else 0
        colbert = 4 * (geometry.colbert_dim or 0) * tokens if Head.COLBERT in heads else 0
        size = _ANSWER_FACTOR * (dense + sparse + colbert) + _TEXT_BYTES * len(ids)
        if size > self._results.most_of_one:
            raise RequestTooLargeError(
                f"the answer for {len(ids)} texts of {tokens} tokens would take {size // MIB} MiB, the limit is "
                f"{self._results.most_of_one // MIB}; send the texts in parts, or ask for fewer heads"
            )
        if not self._results.take(call.client, size):
            raise QueueFullError(
                f"the server is busy: it holds answers of {self._results.total // MIB} MiB; try again in 1 s", 1
            )
        call.result_bytes += size

    def end(self, call: Call, *, is_answered: bool) -> None:
        """Let go of what was held for a request's answer; what nobody got is kept for a retry."""
        self._results.give_back(call.client, call.result_bytes)
        for ids, heads, encoding in () if is_answered else call.found:
            self._kept.keep(call.client, heads, zip(ids, range(len(ids)), strict=True), encoding)

    def _encode_batch(self, ids: Sequence[Ids], heads: frozenset[Head]) -> Encoding:
        return self.encoder.encode_ids(
            ids,
            heads,
            batch_size=len(ids),
            # one run, whole: the queue has bounded them, and packed rows are padded a little
            token_budget=2 * self.encoder.engine.streams * sum(row.size for row in ids),
            on_batch=self.metrics.count_padding,
        )

    async def show_tokens(self, texts: Sequence[str], work: Callable[[], _T]) -> _T:
        """Do something with the tokens of S texts, in another thread; they have passed `check_text`.

        Raises:
            RequestTooLargeError: too many texts, or too long ones.
        """
        self._check_number(len(texts))
        chars, most = sum(map(len, texts)), self.settings.limits.max_body_bytes // _SHOWN_SHARE
        if chars > most:
            raise RequestTooLargeError(f"the texts have {chars} characters, the limit is {most}; send them in parts")
        return await self._in_thread(chars, work)

    def _check_number(self, texts: int) -> None:
        most = self.settings.limits.max_texts
        if texts > most:
            raise RequestTooLargeError(f"the request has {texts} texts, the limit is {most}; send it in parts")

    async def _tokenized(self, texts: Texts, name: str, truncation: Truncation) -> _Tokenized:
        chars = sum(len(item) for item in texts)
        for i, item in enumerate(texts):
            if len(item) > _MOST_CHARS:
                message = f"{name}[{i}] has {len(item)} characters, the limit is {_MOST_CHARS}; split the text"
                raise RequestTooLargeError(message)
        if chars <= _FEW_CHARS:
            return self._to_ids(texts, range(len(texts)), name, truncation)
        found: list[_Tokenized] = []
        for part in greedy_runs(map(len, texts), RunLimit(len(texts), _MANY_CHARS)):  # long requests take turns
            found.append(await self._in_thread(chars, partial(self._to_ids, texts, part, name, truncation)))
        return _Tokenized(tuple(row for some in found for row in some.ids), sum(some.truncated for some in found))

    async def _in_thread(self, chars: int, work: Callable[[], _T]) -> _T:
        """Do something with so many characters in another thread. Megabytes take seconds, and have one of their own."""
        threads = self._tokenizing if chars <= _MANY_CHARS else self._tokenizing_much
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def _to_ids(self, items: Texts, part: range, name: str, truncation: Truncation) -> _Tokenized:
        texts = {i: item for i in part if isinstance(item := items[i], str)}
        try:
            tokenized = self.encoder.tokenizer.encode_batch(
                list(texts.values()), truncation.max_length, truncation.on_truncate
            )
        except TextTooLongError as error:
            raise _too_long(f"{name}[{list(texts)[error.index]}]", error.tokens, error.max_length) from error
        rows, truncated = dict(zip(texts, tokenized.ids, strict=True)), tokenized.truncated
        for i in part:
            if not isinstance(item := items[i], str):
                rows[i], is_cut = self._checked_ids(item, f"{name}[{i}]", truncation)
                truncated += is_cut
        return _Tokenized(tuple(rows[i] for i in part), truncated)

    def _checked_ids(self, ids: TokenIds, name: str, truncation: Truncation) -> tuple[Ids, bool]:
        """A client's token ids with both special tokens, whether or not it sent them; and whether they were cut."""
        info, vocab_size = self.manifest.tokenizer, self.manifest.geometry.vocab_size
        for i, number in enumerate(ids):
            if not 0 <= number < vocab_size:
                raise InputError(
                    f"{name}[{i}] is {number}, which is no token id: they go from 0 to {vocab_size - 1}; "
                    "ids come from this model's tokenizer (POST /tokenize)"
                )
        start = [] if ids[:1] == [info.cls_id] else [info.cls_id]
        end = [] if ids[-1:] == [info.eos_id] and start + ids != [info.eos_id] else [info.eos_id]
        whole = np.array([*start, *ids, *end], np.int32)
        if whole.size <= truncation.max_length:
            return whole, False
        if truncation.on_truncate is OnTruncate.ERROR:
            raise _too_long(name, whole.size, truncation.max_length)
        return np.append(whole[: truncation.max_length - 1], np.int32(info.eos_id)), True

    def stop(self) -> None:
        """The time to drain is over: whatever has no answer yet gets none but a refusal."""
        for act in self.on_stop:
            act()

    async def close(self) -> None:
        """Take no more requests, and close the encoder once what runs has ended; nobody waits for it."""
        self.is_draining = True
        self.batcher.close()
        for threads in (self._tokenizing, self._tokenizing_much):
            threads.shutdown(wait=False, cancel_futures=True)
        self.encoder.close()


def _too_long(name: str, tokens: int, max_length: int) -> RequestTooLargeError:
    return RequestTooLargeError(
        f"{name} has {tokens} tokens, the limit is {max_length}; split the text, or let it be truncated"
    )
