"""Runs what waits in the queue. All but the engine's own work happens on the event loop, so nothing is locked."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.encoding import Encoding, EncodingBuilder
from m3_runtime.errors import DeadlineError, DrainingError, QueueFullError, RequestTooLargeError
from m3_runtime.server.kept import KeptVectors
from m3_runtime.server.metrics import Metrics
from m3_runtime.server.queue import Ids, QueuedRequest, QueuedText, QueueLimits, ThroughputEstimate, TokenQueue
from m3_runtime.server.tracing import RequestTimes, request_times

_EXTRA_SHORT_RUNS = 1
"""Runs beside the streams' own, for short texts only: a long run must not keep short queries out."""

_SHORT_RUN_TOKENS = 256
"""A run of more tokens lets a shorter one run beside it."""

_MOST_RETRY_S = 60
_IDLE_S, _RESTING_TOKENS = 1.0, 128  # nothing runs for so long after a run of so many: memory is given back

_Run = asyncio.Future[tuple[Encoding, float]]
EncodeBatch = Callable[[Sequence[Ids], frozenset[Head]], Encoding]
"""Encodes the texts of one batch with some heads; called from threads. Raises EngineError."""


@dataclass(eq=False)
class _UnderWay:
    """A request that waits or runs: where its texts' vectors go."""

    done: asyncio.Future[None]
    added_s: float
    vectors: EncodingBuilder
    times: RequestTimes = field(default_factory=request_times)


class Batcher:
    """Takes requests, runs their texts in batches, and hands each request its vectors."""

    def __init__(
        self,
        encode: EncodeBatch,
        limits: QueueLimits,
        metrics: Metrics,
        kept: KeptVectors,
        streams: int = 1,
        packed_tokens: int = 0,
        packed_pair_tokens: int = 0,
        rest: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Nothing waits yet.

        `streams` runs compute at a time; `rest` gives back memory if a run had so many tokens. The other arguments are
        those of `TokenQueue`.
        """
        self.kept = kept
        self._encode = encode
        self._metrics = metrics
        self._queue = TokenQueue(limits, packed_tokens, packed_pair_tokens)
        self.estimate = ThroughputEstimate()
        self._running: list[int] = []  # tokens of each run
        self._ended_s = 0.0  # when the last run did
        self._requests: dict[QueuedRequest, _UnderWay] = {}
        self._streams = streams
        self._rest = rest
        self._resting: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(streams + _EXTRA_SHORT_RUNS, "m3-engine")
        self._is_draining = False

    @property
    def is_running(self) -> bool:
        """Whether a batch is in the engine, which nothing can stop."""
        return bool(self._running)

    def check_room(self, tokens: int, client: str, deadline_s: float) -> None:
        """Refuse a request that cannot be served within `deadline_s` from now; of its tokens some may be known only.

        Raises:
            DrainingError: the server is about to stop.
            RequestTooLargeError: the request is larger than the whole queue.
            QueueFullError: the queue has no room, or the wait would be longer than the deadline.
        """
        if self._is_draining:
            raise DrainingError("the server is about to stop; send the request to another one, or again later")
        most = self._queue.limits.max_tokens
        if tokens > most:
            raise RequestTooLargeError(f"the request has {tokens} tokens, the limit is {most}; send it in parts")
        if not self._queue.has_room(client, tokens):
            raise self._full(f"{self._queue.tokens} tokens wait, the limit is {most}")
        # where nothing waits, any request is let in: else one slow run could keep everyone out for ever
        if self._queue.texts:
            wait_s = self.estimate.most_s(self._queue.tokens_before(client, tokens), len(self._requests))
            if wait_s > deadline_s:
                raise self._full(f"it might take {math.ceil(wait_s)} s, the deadline is {deadline_s:g} s")

    def _full(self, reason: str) -> QueueFullError:
        seconds = min(_MOST_RETRY_S, max(1, math.ceil(self.estimate.seconds(self._queue.tokens) / 2)))
        return QueueFullError(f"the server is busy: {reason}; try again in {seconds} s", seconds)

    async def encode(
        self, ids: Sequence[Ids], heads: frozenset[Head], client: str, deadline_s: float, *, is_admitted: bool = False
    ) -> Encoding:
        """The vectors of S texts, at least one. Cancelling the call takes what still waits out of the queue.

        It must be done within `deadline_s` from now. With `is_admitted` it is a part of a request for which
        `check_room` has been asked.

        Raises:
            QueueFullError: the queue is full, or those in it kept the request from being done in time.
            DeadlineError: the request is too much for its deadline.
            DrainingError: the server is about to stop.
            RequestTooLargeError: the request is larger than the whole queue.
            EngineError: the engine failed.
        """
        vectors = EncodingBuilder(len(ids), heads)
        request = QueuedRequest(client, heads, ids, self.kept.fill(vectors, client, heads, ids))
        self._metrics.reused_texts.inc(len(ids) - len(request.texts))
        try:
            if request.texts:
                if not is_admitted:
                    self.check_room(request.tokens, client, deadline_s)
                await self._done(request, vectors, deadline_s)
        except BaseException:
            texts = [(ids[index], index) for index in vectors.present]
            self.kept.keep(client, heads, texts, vectors.encoding())
            raise
        return vectors.encoding()

    async def _done(self, request: QueuedRequest, vectors: EncodingBuilder, deadline_s: float) -> None:
        """Let a request wait, and wait until all its vectors are there."""
        loop = asyncio.get_running_loop()
        under_way = self._requests[request] = _UnderWay(loop.create_future(), loop.time(), vectors)
        under_way.times.queued()
        self._queue.add(request)
        self._pump()
        try:
            async with asyncio.timeout(deadline_s):
                await under_way.done
        except TimeoutError as error:
            raise self._late(request, vectors, deadline_s) from error
        finally:
            self._queue.remove(request)
            del self._requests[request]
            self._count_waiting()

    def _late(
        self, request: QueuedRequest, vectors: EncodingBuilder, deadline_s: float
    ) -> QueueFullError | DeadlineError:
        """Blame the others that wait, or the request itself if it is too much for its deadline."""
        done = vectors.present.size
        kept = f", {done} of its texts were and are kept for a retry" if done else ""
        reason = f"the request was not done within {deadline_s:g} s{kept}"
        if len(self._requests) > 1 and self.estimate.seconds(request.tokens) <= deadline_s:
            return self._full(reason)
        return DeadlineError(f"{reason}; send less at a time, or allow more time")

    def close(self) -> None:
        """Take no more requests; what runs goes on, and nobody waits for it."""
        self._is_draining = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _pump(self) -> None:
        """Start all runs that may start now."""
        while batch := self._next():
            self._start(batch)
        self._count_waiting()

    def _count_waiting(self) -> None:
        self._metrics.queue_tokens.set(self._queue.tokens)
        self._metrics.queue_texts.set(self._queue.texts)

    def _next(self) -> tuple[QueuedText, ...]:
        if len(self._running) < self._streams:
            return self._queue.take()
        if len(self._running) < self._streams + _EXTRA_SHORT_RUNS and max(self._running) > _SHORT_RUN_TOKENS:
            return self._queue.take(_SHORT_RUN_TOKENS)
        return ()

    def _start(self, batch: tuple[QueuedText, ...]) -> None:
        loop = asyncio.get_running_loop()
        tokens = sum(text.tokens for text in batch)
        self._running.append(tokens)
        if self._resting is not None:
            self._resting.cancel()
        for text in batch:
            under_way = self._requests[text.request]
            under_way.times.started()
            self._metrics.queue_seconds.observe(loop.time() - under_way.added_s)
        start_s = loop.time()
        run = loop.run_in_executor(self._threads, self._timed, batch)
        run.add_done_callback(lambda done: self._finished(batch, tokens, start_s, done))

    def _start_rest(self) -> None:
        if not self._is_draining:
            self._threads.submit(self._rest, _RESTING_TOKENS)

    def _timed(self, batch: tuple[QueuedText, ...]) -> tuple[Encoding, float]:
        """Encode a batch with every head that one of its texts wants."""
        start_s = time.perf_counter()
        heads = frozenset[Head]().union(*(text.request.heads for text in batch))
        return self._encode([text.ids for text in batch], heads), time.perf_counter() - start_s

    def _finished(self, batch: tuple[QueuedText, ...], tokens: int, start_s: float, done: _Run) -> None:
        self._running.remove(tokens)
        end_s = asyncio.get_running_loop().time()
        self.estimate.ran(tokens, end_s - max(start_s, self._ended_s))
        self._ended_s = end_s
        self._pump()  # first: the engine must not wait while results are handed out
        if not self._running and not self._is_draining:
            self._resting = asyncio.get_running_loop().call_later(_IDLE_S, self._start_rest)
        if done.cancelled():
            return
        if (error := done.exception()) is not None:
            for request in {text.request for text in batch}:
                if (under_way := self._requests.get(request)) and not under_way.done.done():
                    under_way.done.set_exception(error)
            return
        encoding, duration_s = done.result()
        self._count_run(len(batch), tokens, duration_s)
        for row, text in enumerate(batch):
            if under_way := self._requests.get(text.request):
                under_way.times.ended()
                under_way.vectors.take(text.index, encoding, row)
                if not under_way.vectors.missing and not under_way.done.done():
                    under_way.done.set_result(None)
            else:
                self.kept.keep(text.request.client, text.request.heads, [(text.ids, row)], encoding)

    def _count_run(self, texts: int, tokens: int, duration_s: float) -> None:
        self._metrics.engine_seconds.observe(duration_s)
        self._metrics.batch_texts.observe(texts)
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.texts.inc(texts)
        self._metrics.tokens.inc(tokens)
