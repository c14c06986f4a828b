"""Texts of a request to vectors: what every route does, whatever its format."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head, Manifest
from m3_runtime.bundle.prompts import read_prompts
from m3_runtime.encode.encoding import Encoding, leading
from m3_runtime.encode.options import checked_heads, checked_max_length
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import FieldError, InputError, QueueFullError, RequestTooLargeError, TextTooLongError
from m3_runtime.server.answers import TOO_LONG, TOO_MANY
from m3_runtime.server.batcher import Batcher
from m3_runtime.server.dimensions import DimensionLoss, Dimensions, measured_losses
from m3_runtime.server.kept import KeptVectors
from m3_runtime.server.metrics import Metrics
from m3_runtime.server.queue import Ids
from m3_runtime.server.schemas import Texts, TokenIds
from m3_runtime.server.settings import MIB, ServerSettings
from m3_runtime.server.shares import Holding, Shares
from m3_runtime.server.tracing import request_times
from m3_runtime.splitting import RunLimit, greedy_runs
from m3_runtime.tokenizer import OnTruncate, TokenizedTexts, joined

_T = TypeVar("_T")
_NameOf = Callable[[int], str]
"""What errors call a text, by its index."""

_FIRST_TEXT = "What is BGE M3? And what is it good for?"

_SEND_TEXTS = "Send texts: with LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False"

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

_SCORED_TOKENS = 16384
"""Passages of so many tokens are scored at a time. Their ColBERT vectors take 64 MiB with BGE-M3."""
_LAST_MOMENT_S = 0.001


@dataclass
class Call:
    """A request: who asks, the seconds left for the answer, the size of the body, and bytes held for the answer."""

    client: str
    deadline_s: float
    body_bytes: int
    results: Holding
    found: list[tuple[tuple[Ids, ...], frozenset[Head], Encoding]] = field(default_factory=list)


@dataclass(frozen=True)
class Truncation:
    """How long a text may be, and what becomes of a longer one."""

    max_length: int
    on_truncate: OnTruncate


@dataclass(frozen=True)
class EncodedTexts:
    """The vectors of S texts.

    `cut` are the indexes of those that were cut to the maximum length, `respelled` of those that have a piece which the
    bundle dropped.
    """

    vectors: Encoding
    cut: tuple[int, ...]
    respelled: tuple[int, ...]


@dataclass(frozen=True)
class ScoredTexts:
    """The scores of a query and P passages; `tokens` of all, and `cut` and `respelled` as in `EncodedTexts`."""

    scores: list[float]
    tokens: int
    cut: tuple[int, ...]
    respelled: tuple[int, ...]


Score = Callable[[Encoding], list[float]]
"""Scores of an encoding's text 0, the query, and its others. Called from a thread."""


class Service:
    """An open encoder, its batcher and its counts. Belongs to one event loop."""

    def __init__(self, encoder: M3Encoder, settings: ServerSettings) -> None:
        """Take over an encoder, which `close` closes.

        Raises:
            InputError: the settings' `max_length` is more than the model takes, or than the queue does.
        """
        self.encoder = encoder
        self.settings = settings
        self.max_length = checked_max_length(
            settings.max_length or encoder.max_tokens, encoder.max_tokens, "max_length"
        )
        if (most := settings.limits.queue.max_tokens) < self.max_length:
            message = f"the queue takes {most} tokens, but a text may have {self.max_length}"
            raise InputError(f"{message}; raise --max-queue-tokens or lower --max-length")
        self.model_names = settings.model_names or (self.manifest.source.name,)
        found = read_prompts(encoder.bundle)
        self.prompts, self.default_prompt_name = found.prompts, found.default
        self.dimensions = Dimensions.of(encoder.bundle, is_any_taken=settings.cuts_dimensions)
        self.dimension_losses: tuple[DimensionLoss, ...] = ()
        self.metrics = Metrics(encoder)
        engine, limits = encoder.engine, settings.limits
        self._kept = KeptVectors(limits.max_kept_bytes, limits.kept_s)
        self._results = Shares(limits.max_result_bytes, limits.max_result_bytes // 2)
        self.batcher = Batcher(
            self._encode_batch,
            limits.queue,
            self.metrics,
            self._kept,
            engine.streams,
            engine.packed_tokens,
            engine.rest,
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
    def model_name(self) -> str:
        """What answers call the model."""
        return self.model_names[0]

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call the model, each name once."""
        return tuple(dict.fromkeys((*self.model_names, self.manifest.source.name, self.manifest.space_id)))

    def is_served(self, name: str | None) -> bool:
        """Whether a client's name of the model, or none, means the one that is here."""
        if not name or self.settings.is_any_model_served:
            return True
        return any(_is_same_model(name, own) for own in self.names)

    def warm_up(self) -> None:
        """Encode a text. Engines pack weights when they first run: no client shall wait for it, and it takes memory.

        Raises:
            EngineError: the engine cannot run the graph.
        """
        self.encoder.encode_heads(_FIRST_TEXT, self.manifest.heads)
        if self.settings.cuts_dimensions:
            self.dimension_losses = measured_losses(self.encoder)

    def prompted(self, texts: Texts, prompt_name: str | None, field: str = "prompt_name") -> Texts:
        """The texts, each after the prompt of that name; as they are where no name is given.

        Raises:
            FieldError: the bundle has no such prompt, or there is nothing to put it before.
        """
        if prompt_name is None:
            return texts
        if prompt_name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise FieldError(f"{field}: there is no prompt {prompt_name!r} in this bundle; it has: {known}", field)
        prompt = self.prompts[prompt_name]
        if prompt and not all(isinstance(text, str) for text in texts):
            raise FieldError(f"{field}: no prompt can be put before token ids; send texts", field)
        return tuple(prompt + text if isinstance(text, str) else text for text in texts)

    @contextmanager
    def call(self, client: str, deadline_s: float, body_bytes: int) -> Iterator[Call]:
        """A request, until it is answered; the vectors of one that fails are kept for a retry."""
        with self._results.holding(client) as results:
            call = Call(client, deadline_s, body_bytes, results)
            try:
                yield call
            except BaseException:
                for ids, heads, encoding in call.found:
                    self._kept.keep(client, heads, zip(ids, range(len(ids)), strict=True), encoding)
                raise

    def check_room(self, call: Call) -> None:
        """Refuse a request that will not be served, before its body is parsed: refusing must cost next to nothing.

        How many tokens a body holds is guessed from its size. `encode` checks again with the true number.

        Raises:
            ServiceError: the server is busy, or about to stop.
        """
        most = self.settings.limits.queue.max_tokens // _BODY_SHARE
        self.batcher.check_room(min(most, call.body_bytes // _BYTES_PER_TOKEN), call.client, call.deadline_s)

    async def encode(
        self, texts: Texts, name: str, heads: frozenset[Head], truncation: Truncation, call: Call, first: str = ""
    ) -> EncodedTexts:
        """The vectors of S texts, in their order.

        Args:
            texts: the texts.
            name: what errors call them.
            heads: heads that are wanted.
            truncation: how long texts may be.
            call: who asks, and how long there is for it.
            first: what errors call text 0, where it is a query; then the others count from 0.

        Raises:
            HeadError: the bundle has no such head.
            FieldError: a token id is none, or the ids are of another tokenizer.
            RequestTooLargeError: too many texts, too many tokens, or a text is too long.
            ServiceError: the server is busy, about to stop, or too late.
            EngineError: the engine failed.
        """
        tokenized = await self._checked_ids(texts, partial(_name_of, name, first), heads, truncation, call)
        self._hold_results(tokenized.ids, heads, call)
        encoding = await self.batcher.encode(tokenized.ids, heads, call.client, call.deadline_s)
        call.found.append((tokenized.ids, heads, encoding))
        counts = {"truncated": tokenized.truncated, "out_of_vocabulary": tokenized.out_of_vocabulary}
        return EncodedTexts(replace(encoding, **counts), _cut(tokenized), _respelled(tokenized))

    async def score(
        self, texts: Texts, name: str, heads: frozenset[Head], truncation: Truncation, call: Call, score: Score
    ) -> ScoredTexts:
        """Scores of text 0, the query, and all others.

        Vectors of many passages would take gigabytes, so passages are scored in parts: only their scores are held.
        Arguments and errors are those of `encode`; `score` makes scores of text 0 and the others of an encoding.
        """
        tokenized = await self._checked_ids(texts, partial(_name_of, name, "query"), heads, truncation, call)
        query, *passages = tokenized.ids
        tokens = sum(row.size for row in tokenized.ids)
        self.batcher.check_room(tokens, call.client, call.deadline_s)
        scores: list[float] = []
        for part in greedy_runs((row.size for row in passages), RunLimit(len(passages), _SCORED_TOKENS)):
            ids, start_s = (query, *passages[part.start : part.stop]), time.perf_counter()
            size = self._hold_results(ids, heads, call)
            encoding = await self.batcher.encode(ids, heads, call.client, call.deadline_s, is_admitted=True)
            scores += await asyncio.to_thread(score, encoding)
            call.results.give_back(size)
            call.deadline_s = max(_LAST_MOMENT_S, call.deadline_s - (time.perf_counter() - start_s))
        return ScoredTexts(scores, tokens, _cut(tokenized), _respelled(tokenized))

    async def _checked_ids(
        self, texts: Texts, name_of: _NameOf, heads: frozenset[Head], truncation: Truncation, call: Call
    ) -> TokenizedTexts:
        """Texts as ids; the time that this takes is gone from the call's."""
        checked_heads(self.manifest, heads)
        self._check_number(len(texts))
        start_s = time.perf_counter()
        tokenized = await self._tokenized(texts, name_of, truncation)
        used_s = time.perf_counter() - start_s
        call.deadline_s = max(_LAST_MOMENT_S, call.deadline_s - used_s)
        self.metrics.tokenize_seconds.observe(used_s)
        tokens = sum(row.size for row in tokenized.ids)
        request_times().tokenized(sum(len(text) for text in texts if isinstance(text, str)), tokens, used_s)
        self.metrics.truncated.inc(tokenized.truncated)
        self.metrics.out_of_vocabulary.inc(tokenized.out_of_vocabulary)
        return tokenized

    def _hold_results(self, ids: Sequence[Ids], heads: frozenset[Head], call: Call) -> int:
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
        if not call.results.take(size):
            raise QueueFullError(
                f"the server is busy: it holds answers of {self._results.total // MIB} MiB; try again in 1 s", 1
            )
        return size

    def _encode_batch(self, ids: Sequence[Ids], heads: frozenset[Head]) -> Encoding:
        return self.encoder.encode_ids(
            ids,
            heads,
            batch_size=len(ids),
            # one run, whole: the queue has bounded them, and packed rows are padded a little
            token_budget=2 * self.encoder.engine.streams * sum(row.size for row in ids),
            on_batch=self.metrics.count_padding,
        )

    def dense_of(self, found: EncodedTexts, size: int, *, normalize: bool | None) -> NDArray[np.float32]:
        """(S, size) float32: dense vectors as a request wants them; `size` has been checked, and so has False."""
        dense, is_unit = found.vectors.dense_vecs, self.manifest.normalize
        assert dense is not None
        if size == dense.shape[1] and (is_unit or not normalize):
            return dense
        return leading(dense, size, normalize=is_unit or bool(normalize))

    async def show_ids(self, rows: Sequence[Sequence[int]], work: Callable[[], _T]) -> _T:
        """Do something with the ids of S texts, in another thread.

        Raises:
            RequestTooLargeError: too many texts.
        """
        self._check_number(len(rows))
        return await self._in_thread(sum(map(len, rows)), work)

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
            message = f"the request has {texts} texts, the limit is {most}; send it in parts"
            raise RequestTooLargeError(message, code=TOO_MANY)

    async def _tokenized(self, texts: Texts, name_of: _NameOf, truncation: Truncation) -> TokenizedTexts:
        chars = sum(len(item) for item in texts)
        for i, item in enumerate(texts):
            if len(item) > _MOST_CHARS:
                message = f"{name_of(i)} has {len(item)} characters, the limit is {_MOST_CHARS}; split the text"
                raise RequestTooLargeError(message, name_of(i), TOO_LONG)
        if chars <= _FEW_CHARS:
            return self._to_ids(texts, range(len(texts)), name_of, truncation)
        found: list[TokenizedTexts] = []
        for part in greedy_runs(map(len, texts), RunLimit(len(texts), _MANY_CHARS)):  # long requests take turns
            found.append(await self._in_thread(chars, partial(self._to_ids, texts, part, name_of, truncation)))
        return joined(found)

    async def _in_thread(self, chars: int, work: Callable[[], _T]) -> _T:
        """Do something with so many characters in another thread. Megabytes take seconds, and have one of their own."""
        threads = self._tokenizing if chars <= _MANY_CHARS else self._tokenizing_much
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def _to_ids(self, items: Texts, part: range, name_of: _NameOf, truncation: Truncation) -> TokenizedTexts:
        of_ids = {i: item for i in part if isinstance(item := items[i], list)}
        for i, item in of_ids.items():
            self._check_ids(item, name_of(i))
        found = {i: self._whole_ids(item, name_of(i), truncation) for i, item in of_ids.items()}
        texts = {i: item for i in part if isinstance(item := items[i], str)}
        try:
            tokenized = self.encoder.tokenizer.encode_batch(
                list(texts.values()), truncation.max_length, truncation.on_truncate
            )
        except TextTooLongError as error:
            raise _too_long(name_of(list(texts)[error.index]), error.tokens, error.max_length) from error
        found.update(zip(texts, zip(tokenized.ids, tokenized.is_cut.tolist(), strict=True), strict=True))
        respelled = None if tokenized.is_respelled is None else np.zeros(len(part), np.bool_)
        if respelled is not None and tokenized.is_respelled is not None:
            respelled[[i - part.start for i in texts]] = tokenized.is_respelled  # ids of a client have all their rows
        cut = np.array([found[i][1] for i in part], np.bool_)
        return TokenizedTexts(tuple(found[i][0] for i in part), cut, respelled)

    def _check_ids(self, ids: TokenIds, name: str) -> None:
        vocab_size = self.manifest.geometry.vocab_size
        for i, number in enumerate(ids):
            if not 0 <= number < vocab_size:
                raise FieldError(
                    f"{name}[{i}] is {number}, which is no token id: they go from 0 to {vocab_size - 1}; ids come from "
                    f"this model's tokenizer (POST /tokenize). {_SEND_TEXTS}",
                    f"{name}[{i}]",
                )
        try:
            self.encoder.tokenizer.check_ids(np.array(ids, np.int32), name)
        except InputError as error:
            raise FieldError(str(error), name) from error

    def _whole_ids(self, ids: TokenIds, name: str, truncation: Truncation) -> tuple[Ids, bool]:
        """A client's token ids with both special tokens; and whether they were cut."""
        info = self.manifest.tokenizer
        is_whole = len(ids) > 1 and (ids[0], ids[-1]) == (info.cls_id, info.eos_id)
        if not is_whole and not self.settings.takes_token_ids:
            raise self._of_another_tokenizer(name)
        start = [] if ids[:1] == [info.cls_id] else [info.cls_id]
        end = [] if ids[-1:] == [info.eos_id] and start + ids != [info.eos_id] else [info.eos_id]
        whole = np.array([*start, *ids, *end], np.int32)
        if whole.size <= truncation.max_length:
            return whole, False
        if truncation.on_truncate is OnTruncate.ERROR:
            raise _too_long(name, whole.size, truncation.max_length)
        return np.append(whole[: truncation.max_length - 1], np.int32(info.eos_id)), True

    def _of_another_tokenizer(self, name: str) -> FieldError:
        info, decode = self.manifest.tokenizer, self.encoder.tokenizer.decode
        start, end = (f"{number} ({decode([number])})" for number in (info.cls_id, info.eos_id))
        return FieldError(
            f"{name} holds integers that do not begin with {start} and end with {end}, as this model's token ids do "
            "(POST /tokenize); ids of another tokenizer, such as OpenAI's, would give vectors of unrelated "
            f"words. {_SEND_TEXTS}. A server that is started with --accept-token-ids takes any",
            name,
        )

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


def _cut(tokenized: TokenizedTexts) -> tuple[int, ...]:
    return tuple(np.flatnonzero(tokenized.is_cut).tolist())


def _respelled(tokenized: TokenizedTexts) -> tuple[int, ...]:
    found = tokenized.is_respelled
    return () if found is None else tuple(np.flatnonzero(found).tolist())


def _name_of(name: str, first: str, index: int) -> str:
    return first if first and index == 0 else f"{name}[{index - bool(first)}]"


def _too_long(name: str, tokens: int, max_length: int) -> RequestTooLargeError:
    message = f"{name} has {tokens} tokens, the limit is {max_length}; split the text, or let it be truncated"
    return RequestTooLargeError(message, name, TOO_LONG)


def _is_same_model(name: str, own: str) -> bool:
    """Whether two names mean one model: in any case, and without the organisation where only one of them has it.

    >>> _is_same_model("bge-m3", "BAAI/bge-m3"), _is_same_model("baai/BGE-M3", "BAAI/bge-m3")
    (True, True)
    >>> _is_same_model("other/bge-m3", "BAAI/bge-m3"), _is_same_model("BAAI", "BAAI/bge-m3")
    (False, False)
    """
    name, own = name.strip().casefold(), own.casefold()
    if ("/" in name) == ("/" in own):
        return name == own
    return name.rpartition("/")[2] == own.rpartition("/")[2]
