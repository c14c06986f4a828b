"""Texts of a request to vectors: what every route does, whatever its format."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head, Manifest
from m3_runtime.bundle.prompts import read_prompts
from m3_runtime.encode.encoding import Encoding, leading
from m3_runtime.encode.options import checked_heads, checked_max_length
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import FieldError, InputError, QueueFullError, RequestTooLargeError
from m3_runtime.pairs import PairLimits, pair_limits
from m3_runtime.reranker import SCORE_HEADS, M3Reranker
from m3_runtime.server.answers import TOO_MANY
from m3_runtime.server.batcher import Batcher
from m3_runtime.server.dimensions import Dimensions, measured_losses
from m3_runtime.server.kept import KeptVectors
from m3_runtime.server.metrics import Metrics
from m3_runtime.server.queue import Ids
from m3_runtime.server.schemas import Texts
from m3_runtime.server.settings import MIB, ServerSettings
from m3_runtime.server.shares import Holding, Shares
from m3_runtime.server.tokenizing import NameOf, RequestTokenizer, Truncation, name_with
from m3_runtime.server.tracing import request_times
from m3_runtime.splitting import RunLimit, greedy_runs
from m3_runtime.tokenizer import OnTruncate, TokenizedTexts

_T = TypeVar("_T")

_FIRST_TEXT = "What is BGE M3? And what is it good for?"

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
    """A request: who asks, the event loop's time at which it must be answered, and bytes held for its answer."""

    client: str
    results: Holding
    until_s: float = math.inf
    found: list[tuple[Sequence[Ids], frozenset[Head], Encoding]] = field(default_factory=list)

    @property
    def left_s(self) -> float:
        """Seconds for its answer; a last moment is left to one that is late, in which it is refused as such."""
        return max(_LAST_MOMENT_S, self.until_s - asyncio.get_running_loop().time())


@dataclass(frozen=True)
class EncodedTexts:
    """The vectors of S texts; and these as ids, with which of them were cut or have a piece that the bundle dropped."""

    vectors: Encoding
    tokenized: TokenizedTexts


@dataclass(frozen=True)
class ScoredTexts:
    """The scores of a query and P passages, and the tokens of all; (1 + P,) flags as `TokenizedTexts` has them."""

    scores: list[float]
    tokens: int
    is_cut: NDArray[np.bool_]
    is_respelled: NDArray[np.bool_] | None = None


Score = Callable[[Encoding], list[float]]
"""Scores of an encoding's text 0, the query, and its others. Called from a thread."""


class Service:
    """An open model, perhaps a reranker beside it, their batcher and its counts. Belongs to one event loop.

    Attributes:
        model: an encoder, or a reranker that is served alone; answers call it by its name.
        reranker: what scores for rerank; None where the encoder's heads do.
    """

    def __init__(
        self, model: M3Encoder | M3Reranker, settings: ServerSettings, reranker: M3Reranker | None = None
    ) -> None:
        """Take over a model and a reranker beside it, which `close` closes.

        Raises:
            InputError: the settings' `max_length` is more than the model takes, or than the queue does.
        """
        self.model = model
        self.reranker = model if isinstance(model, M3Reranker) else reranker
        self.settings = settings
        self.max_length = checked_max_length(settings.max_length or model.max_tokens, model.max_tokens, "max_length")
        self.pair_max_length = self._pair_limits(self.max_length).max_length if self.reranker else self.max_length
        if (most := settings.limits.queue.max_tokens) < self.max_length:
            message = f"the queue takes {most} tokens, but a text may have {self.max_length}"
            raise InputError(f"{message}; raise --max-queue-tokens or lower --max-length")
        self.model_names = settings.model_names or (self.manifest.source.name,)
        found = read_prompts(model.bundle)
        self.prompts, self.default_prompt_name = found.prompts, found.default
        self.dimensions = Dimensions.of(model.bundle, is_any_taken=settings.cuts_dimensions)
        self.dimension_losses: list[dict[str, float]] = []
        self._models = (model,) if reranker is None else (model, reranker)
        self.metrics = Metrics(self._models)
        engine, limits = model.engine, settings.limits
        self._kept = KeptVectors(limits.max_kept_bytes, limits.kept_s)
        self._results = Shares(limits.max_result_bytes, limits.max_result_bytes // 2)
        self.batcher = Batcher(
            self._encode_batch,
            limits.queue,
            self.metrics,
            self._kept,
            engine.streams,
            engine.packed_tokens,
            self.reranker.engine.packed_tokens if self.reranker else 0,
            self._rest,
        )
        self.is_draining = False
        self.on_stop: list[Callable[[], None]] = []
        self.tokenizer = RequestTokenizer(model, self.reranker, takes_token_ids=settings.takes_token_ids)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.model.bundle.manifest

    @property
    def has_encoder(self) -> bool:
        """Whether there are vectors; a reranker alone has none."""
        return isinstance(self.model, M3Encoder)

    @property
    def model_name(self) -> str:
        """What answers call the model."""
        return self.model_names[0]

    @property
    def reranker_beside(self) -> M3Reranker | None:
        """The reranker beside an encoder."""
        return None if self.reranker is self.model else self.reranker

    @property
    def reranker_name(self) -> str:
        """What answers call the model that reranks."""
        return self.reranker_names[0]

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call the model, each name once."""
        return tuple(dict.fromkeys((*self.model_names, self.manifest.source.name, self.manifest.space_id)))

    @property
    def reranker_names(self) -> tuple[str, ...]:
        """The same of the model that reranks."""
        if self.reranker_beside is None:
            return self.names
        manifest = self.reranker_beside.bundle.manifest
        return manifest.source.name, manifest.space_id

    def is_served(self, name: str | None) -> bool:
        """Whether a client's name of the model, or none, means the one that is here."""
        if not name or self.settings.is_any_model_served:
            return True
        return _is_one_of(name, self.names)

    def is_reranker_beside(self, name: str) -> bool:
        """Whether a client's name means the reranker beside the encoder."""
        return self.reranker_beside is not None and _is_one_of(name, self.reranker_names)

    def warm_up(self) -> None:
        """Run a text, and a pair. Engines pack weights when they first run: no client shall wait for it.

        Raises:
            EngineError: the engine cannot run the graph.
        """
        if self.reranker is not None:
            self.reranker.score_pairs([(_FIRST_TEXT, _FIRST_TEXT)])
        if isinstance(self.model, M3Encoder):
            self.model.encode_heads(_FIRST_TEXT, self.manifest.heads)
            if self.settings.cuts_dimensions:
                self.dimension_losses = measured_losses(self.model)

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
    def call(self, client: str) -> Iterator[Call]:
        """A request, until it is answered; the vectors of one that fails are kept for a retry."""
        with self._results.holding(client) as results:
            call = Call(client, results)
            try:
                yield call
            except BaseException:
                for ids, heads, encoding in call.found:
                    self._kept.keep(client, heads, zip(ids, range(len(ids)), strict=True), encoding)
                raise

    def check_room(self, client: str, body_bytes: int, deadline_s: float) -> None:
        """Refuse a request that will not be served, before its body is parsed: refusing must cost next to nothing.

        How many tokens a body holds is guessed from its size. `encode` checks again with the true number.

        Raises:
            ServiceError: the server is busy, or about to stop.
        """
        most = self.settings.limits.queue.max_tokens // _BODY_SHARE
        self.batcher.check_room(min(most, body_bytes // _BYTES_PER_TOKEN), client, deadline_s)

    async def encode(
        self, texts: Texts, name: str, heads: frozenset[Head], truncation: Truncation, call: Call, first: str = ""
    ) -> EncodedTexts:
        """The vectors of S texts, in their order. Errors call them `name`, and text 0 `first` where it is a query.

        Raises:
            HeadError: the bundle has no such head.
            FieldError: a token id is none, or the ids are of another tokenizer.
            RequestTooLargeError: too many texts, too many tokens, or a text is too long.
            ServiceError: the server is busy, about to stop, or too late.
            EngineError: the engine failed.
        """
        tokenized = await self._checked_ids(texts, partial(name_with, name, first), heads, truncation)
        return EncodedTexts(await self._encoded(tokenized.ids, heads, call), tokenized)

    async def score(
        self, texts: Texts, name: str, heads: frozenset[Head], truncation: Truncation, call: Call, score: Score
    ) -> ScoredTexts:
        """Scores of text 0, the query, and all others.

        Vectors of many passages would take gigabytes, so passages are scored in parts: only their scores are held.
        Arguments and errors are those of `encode`; `score` makes scores of text 0 and the others of an encoding.
        """
        tokenized = await self._checked_ids(texts, partial(name_with, name, "query"), heads, truncation)
        query, *passages = tokenized.ids
        tokens = sum(row.size for row in tokenized.ids)
        self.batcher.check_room(tokens, call.client, call.left_s)
        scores: list[float] = []
        for part in greedy_runs((row.size for row in passages), RunLimit(len(passages), _SCORED_TOKENS)):
            ids = (query, *passages[part.start : part.stop])
            size = self._hold_results(ids, heads, call)
            encoding = await self.batcher.encode(ids, heads, call.client, call.left_s, is_admitted=True)
            scores += await asyncio.to_thread(score, encoding)
            call.results.give_back(size)
        return ScoredTexts(scores, tokens, tokenized.is_cut, tokenized.is_respelled)

    async def rerank(
        self, query: str, passages: Sequence[str], name: str, truncation: Truncation, call: Call
    ) -> ScoredTexts:
        """The reranker's scores of a query and P passages, before the sigmoid.

        Texts have passed `check_text`; `truncation` is of pairs. Arguments and errors are those of `encode`.
        """
        self._check_number(len(passages) + 1)
        limits, start_s = self._pair_limits(truncation.max_length, truncation.on_truncate), time.perf_counter()
        found = await self.tokenizer.pairs(query, passages, name, limits)
        self._note_tokenized(len(query) + sum(map(len, passages)), found.as_texts(), start_s)
        encoding = await self._encoded(found.ids, SCORE_HEADS, call)
        self.metrics.pairs.inc(len(passages))
        assert encoding.scores is not None
        is_cut = np.concatenate([[found.is_query_cut.any()], found.is_passage_cut])
        return ScoredTexts(encoding.scores.tolist(), int(encoding.token_counts.sum()), is_cut)

    async def _checked_ids(
        self, texts: Texts, name_of: NameOf, heads: frozenset[Head], truncation: Truncation
    ) -> TokenizedTexts:
        """Texts as ids."""
        checked_heads(self.manifest, heads)
        self._check_number(len(texts))
        start_s = time.perf_counter()
        tokenized = await self.tokenizer.texts(texts, name_of, truncation)
        self._note_tokenized(sum(len(text) for text in texts if isinstance(text, str)), tokenized, start_s)
        return tokenized

    def _note_tokenized(self, chars: int, tokenized: TokenizedTexts, start_s: float) -> None:
        used_s = time.perf_counter() - start_s
        self.metrics.tokenize_seconds.observe(used_s)
        request_times().tokenized(chars, sum(row.size for row in tokenized.ids), used_s)
        self.metrics.truncated.inc(tokenized.truncated)
        self.metrics.out_of_vocabulary.inc(tokenized.out_of_vocabulary)

    async def _encoded(self, ids: Sequence[Ids], heads: frozenset[Head], call: Call) -> Encoding:
        self._hold_results(ids, heads, call)
        encoding = await self.batcher.encode(ids, heads, call.client, call.left_s)
        call.found.append((ids, heads, encoding))
        return encoding

    def _pair_limits(self, max_length: int, on_truncate: OnTruncate = OnTruncate.TRUNCATE) -> PairLimits:
        assert self.reranker is not None
        most = self.reranker.max_tokens
        return pair_limits(min(max_length, most), None, most, on_truncate)

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
        model = self.reranker if self.reranker is not None and Head.SCORE in heads else self.model
        return model.encode_ids(
            ids,
            heads,
            batch_size=len(ids),
            # one run, whole: the queue has bounded them, and packed rows are padded a little
            token_budget=2 * model.engine.streams * sum(row.size for row in ids),
            on_batch=self.metrics.count_padding,
        )

    def _rest(self, least_tokens: int) -> None:
        for model in self._models:
            model.engine.rest(least_tokens)

    def dense_of(self, vectors: Encoding, size: int, *, normalize: bool | None) -> NDArray[np.float32]:
        """(S, size) float32: dense vectors as a request wants them; `size` has been checked, and so has False."""
        dense, is_unit = vectors.dense_vecs, self.manifest.normalize
        assert dense is not None
        if size == dense.shape[1] and (is_unit or not normalize):
            return dense
        return leading(dense, size, normalize=is_unit or bool(normalize))

    async def show_tokens(self, sizes: Sequence[int], work: Callable[[], _T], most: int | None = None) -> _T:
        """Do something with S texts of these many characters or ids, `most` together, in another thread.

        Raises:
            RequestTooLargeError: too many texts, or too long ones.
        """
        self._check_number(len(sizes))
        if most is not None and sum(sizes) > most:
            raise RequestTooLargeError(
                f"the texts have {sum(sizes)} characters, the limit is {most}; send them in parts"
            )
        return await self.tokenizer.in_thread(sum(sizes), work)

    def _check_number(self, texts: int) -> None:
        most = self.settings.limits.max_texts
        if texts > most:
            message = f"the request has {texts} texts, the limit is {most}; send it in parts"
            raise RequestTooLargeError(message, code=TOO_MANY)

    def stop(self) -> None:
        """The time to drain is over: whatever has no answer yet gets none but a refusal."""
        for act in self.on_stop:
            act()

    async def close(self) -> None:
        """Take no more requests, and close the models once what runs has ended; nobody waits for it."""
        self.is_draining = True
        self.batcher.close()
        self.tokenizer.close()
        for model in self._models:
            model.close()


def _is_one_of(name: str, own: Sequence[str]) -> bool:
    return any(_is_same_model(name, one) for one in own)


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
