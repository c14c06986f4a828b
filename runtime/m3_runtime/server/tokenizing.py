"""Tokenizes what requests hold: texts, token ids and pairs. Long requests take turns, so that short ones go between."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from m3_runtime.errors import FieldError, InputError, NoRoomError, RequestTooLargeError, TextTooLongError
from m3_runtime.opened_model import OpenedModel
from m3_runtime.pairs import PairLimits, TokenizedPairs, check_not_empty, tokenized_pairs
from m3_runtime.reranker import M3Reranker
from m3_runtime.server.answers import TOO_LONG
from m3_runtime.server.queue import Ids
from m3_runtime.server.schemas import Texts, TokenIds
from m3_runtime.splitting import RunLimit, greedy_runs
from m3_runtime.tokenizer import OnTruncate, TokenizedTexts, joined

_T = TypeVar("_T")
NameOf = Callable[[int], str]
"""What errors call a text, by its index."""

_SEND_TEXTS = "Send texts: with LangChain's OpenAIEmbeddings set check_embedding_ctx_length=False"

# Handing so little to another thread would take longer than tokenizing it.
_FEW_CHARS = 4096
_MANY_CHARS = 2**17
_MOST_CHARS = 2**21
"""Of one text. Without blanks, so many take seconds to tokenize and some hundred MiB."""


@dataclass(frozen=True)
class Truncation:
    """How long a text may be, and what becomes of a longer one."""

    max_length: int
    on_truncate: OnTruncate


class RequestTokenizer:
    """The tokenizers of the models that are served, and threads for what takes long. Belongs to one event loop."""

    def __init__(self, model: OpenedModel, reranker: M3Reranker | None, *, takes_token_ids: bool) -> None:
        """Tokenize for these models; `takes_token_ids` as in the server's settings."""
        self._model, self._reranker, self._takes_token_ids = model, reranker, takes_token_ids
        self._few = ThreadPoolExecutor(1, "m3-tokenizer")
        self._many = ThreadPoolExecutor(1, "m3-long-tokenizer")

    def close(self) -> None:
        """Begin nothing more."""
        for threads in (self._few, self._many):
            threads.shutdown(wait=False, cancel_futures=True)

    async def texts(self, texts: Texts, name_of: NameOf, truncation: Truncation) -> TokenizedTexts:
        """The ids of S texts, or of S lists of token ids that a client has sent.

        Raises:
            FieldError: a token id is none, or the ids are of another tokenizer.
            RequestTooLargeError: a text is too long.
        """
        for i, item in enumerate(texts):
            _check_chars(item, name_of(i))
        found = await self._in_turns(
            list(map(len, texts)), 0, lambda part: self._to_ids(texts, part, name_of, truncation)
        )
        return joined(found)

    async def pairs(self, query: str, passages: Sequence[str], name: str, limits: PairLimits) -> TokenizedPairs:
        """The ids of P pairs for the reranker; errors call the passages `name`.

        Raises:
            FieldError: a text is empty, or the query leaves no room for its passage.
            RequestTooLargeError: a text is too long.
        """
        assert self._reranker is not None
        tokenizer = self._reranker.tokenizer
        for i, text in enumerate((query, *passages)):
            called = name_with(name, "query", i)
            try:
                check_not_empty(text, called)
            except InputError as error:
                raise FieldError(str(error), called) from error
            _check_chars(text, called)

        def tokenize(part: range) -> TokenizedPairs:
            pairs = [(query, passages[i]) for i in part]
            try:
                return tokenized_pairs(
                    pairs, limits, tokenizer, lambda i, side: name_with(name, "query", side * (i + 1)), part.start
                )
            except TextTooLongError as error:
                raise _too_long(error.name, error.tokens, error.max_length) from error
            except NoRoomError as error:
                raise FieldError(str(error), error.name) from error

        return TokenizedPairs.joined(await self._in_turns(list(map(len, passages)), len(query), tokenize))

    async def _in_turns(self, sizes: Sequence[int], more: int, work: Callable[[range], _T]) -> list[_T]:
        """Do something with items of these sizes, and in each turn so many characters more; long ones take turns."""
        chars = sum(sizes) + more
        parts = greedy_runs(sizes, RunLimit(len(sizes), max(_MANY_CHARS, more)))
        if chars <= _FEW_CHARS:
            return [work(part) for part in parts]
        return [await self.in_thread(chars, partial(work, part)) for part in parts]

    async def in_thread(self, chars: int, work: Callable[[], _T]) -> _T:
        """Do something with so many characters in another thread. Megabytes take seconds, and have one of their own."""
        threads = self._few if chars <= _MANY_CHARS else self._many
        return await asyncio.get_running_loop().run_in_executor(threads, work)

    def _to_ids(self, items: Texts, part: range, name_of: NameOf, truncation: Truncation) -> TokenizedTexts:
        of_ids = {i: item for i in part if isinstance(item := items[i], list)}
        for i, item in of_ids.items():
            self._check_ids(item, name_of(i))
        found = {i: self._whole_ids(item, name_of(i), truncation) for i, item in of_ids.items()}
        texts = {i: item for i in part if isinstance(item := items[i], str)}
        try:
            tokenized = self._model.tokenizer.encode_batch(
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
        check_known(
            ids, self._model.vocab_size, name, f"; ids come from this model's tokenizer (POST /tokenize). {_SEND_TEXTS}"
        )
        try:
            self._model.tokenizer.check_ids(np.array(ids, np.int32), name)
        except InputError as error:
            raise FieldError(str(error), name) from error

    def _whole_ids(self, ids: TokenIds, name: str, truncation: Truncation) -> tuple[Ids, bool]:
        """A client's token ids with both special tokens; and whether they were cut."""
        info = self._model.tokenizer_info
        is_whole = len(ids) > 1 and (ids[0], ids[-1]) == (info.cls_id, info.eos_id)
        if not is_whole and not self._takes_token_ids:
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
        info, decode = self._model.tokenizer_info, self._model.tokenizer.decode
        start, end = (f"{number} ({decode([number])})" for number in (info.cls_id, info.eos_id))
        return FieldError(
            f"{name} holds integers that do not begin with {start} and end with {end}, as this model's token ids do "
            "(POST /tokenize); ids of another tokenizer, such as OpenAI's, would give vectors of unrelated "
            f"words. {_SEND_TEXTS}. A server that is started with --accept-token-ids takes any",
            name,
        )


def check_known(ids: TokenIds, vocab_size: int, name: str, remedy: str = "") -> None:
    """Refuse what no token has as its id.

    Raises:
        FieldError: an id is negative, or too large; it is named.
    """
    for i, number in enumerate(ids):
        if not 0 <= number < vocab_size:
            message = f"{name}[{i}] is {number}, which is no token id: they go from 0 to {vocab_size - 1}{remedy}"
            raise FieldError(message, f"{name}[{i}]")


def _check_chars(text: str | TokenIds, name: str) -> None:
    if len(text) > _MOST_CHARS:
        message = f"{name} has {len(text)} characters, the limit is {_MOST_CHARS}; split the text"
        raise RequestTooLargeError(message, name, TOO_LONG)


def name_with(name: str, first: str, index: int) -> str:
    """What errors call a text; `first` is what text 0 is called, where it is a query: then the others count from 0."""
    return first if first and index == 0 else f"{name}[{index - bool(first)}]"


def _too_long(name: str, tokens: int, max_length: int) -> RequestTooLargeError:
    message = f"{name} has {tokens} tokens, the limit is {max_length}; split the text, or let it be truncated"
    return RequestTooLargeError(message, name, TOO_LONG)
