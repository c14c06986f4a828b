"""Runs what waits in the queue. All but the engine's own work happens on the event loop, so nothing is locked."""

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from m3_runtime.bundle.manifest import Head
from m3_runtime.errors import DeadlineError, DrainingError, QueueFullError, RequestTooLargeError
from m3_runtime.server.backend import TextVectors
from m3_runtime.server.pace import Pace
from m3_runtime.server.queue import Ids, Job, QueuedText, QueueLimits, TokenQueue

# Beside the streams: a long run must not keep short queries out.
_SHORT_LANES = 1
_SHORT_RUN_TOKENS = 256
"""A run of more tokens lets a shorter one run beside it."""

_MOST_RETRY_S = 60


class Runner(Protocol):
    """Encodes a batch; called from threads."""

    def run(self, batch: Sequence[QueuedText]) -> list[TextVectors]:
        """The vectors of each text.

        Raises:
            EngineError: the engine refused the batch.
        """
        ...


class Observer(Protocol):
    """Is told what happens, on the event loop."""

    def waiting(self, tokens: int, texts: int) -> None:
        """How much waits now."""

    def queued(self, wait_s: float) -> None:
        """A text has left the queue after so long."""

    def ran(self, texts: int, tokens: int, duration_s: float) -> None:
        """A batch has run."""


@dataclass(eq=False)
class _Request:
    """A job under way: where its results go."""

    job: Job
    done: asyncio.Future[None]
    added_s: float
    results: list[TextVectors | None]
    missing: int

    def finish(self, error: BaseException | None = None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)


class Batcher:
    """Takes requests, runs their texts in batches, and hands each request its vectors."""

    def __init__(
        self, runner: Runner, limits: QueueLimits, observer: Observer, streams: int = 1, packed_tokens: int = 0
    ) -> None:
        """Nothing waits yet.

        Args:
            runner: encodes.
            limits: of the queue.
            observer: is told what happens.
            streams: runs that compute at a time.
            packed_tokens: texts of at most so many tokens are packed.
        """
        self._runner = runner
        self._observer = observer
        self._queue = TokenQueue(limits, packed_tokens)
        self._pace = Pace()
        self._running: list[int] = []  # tokens of each run
        self._ended_s = 0.0  # when the last run did
        self._requests: dict[Job, _Request] = {}
        self._streams = streams
        self._threads = ThreadPoolExecutor(streams + _SHORT_LANES, "m3-engine")
        self._is_draining = False

    @property
    def limits(self) -> QueueLimits:
        """The queue's limits."""
        return self._queue.limits

    @property
    def requests(self) -> int:
        """Requests that wait or run."""
        return len(self._requests)

    def check_room(self, tokens: int, client: str, deadline_s: float) -> None:
        """Refuse a request that cannot be served; may be asked before the texts are tokenized, with fewer tokens.

        Args:
            tokens: tokens of the request.
            client: who asks.
            deadline_s: seconds from now in which it must be done.

        Raises:
            DrainingError: the server is about to stop.
            RequestTooLargeError: the request is larger than the whole queue.
            QueueFullError: the queue has no room, or the wait would be longer than the deadline.
        """
        if self._is_draining:
            raise DrainingError("the server is about to stop; send the request to another one, or again later")
        most = self.limits.max_tokens
        if tokens > most:
            raise RequestTooLargeError(f"the request has {tokens} tokens, the limit is {most}; send it in parts")
        if not self._queue.has_room(client, tokens):
            raise self._full(f"{self._queue.tokens} tokens wait, the limit is {most}")
        # where nothing waits, whoever comes is let in: else one slow run could keep everyone out for ever
        if self._queue.texts and (wait_s := self._pace.most_s(client, tokens)) > deadline_s:
            raise self._full(f"it might take {math.ceil(wait_s)} s, the deadline is {deadline_s:g} s")

    def _full(self, reason: str) -> QueueFullError:
        seconds = min(_MOST_RETRY_S, max(1, math.ceil(self._pace.seconds(self._queue.tokens) / 2)))
        return QueueFullError(f"the server is busy: {reason}; try again in {seconds} s", seconds)

    async def encode(
        self, ids: Sequence[Ids], heads: tuple[Head, ...], client: str, deadline_s: float
    ) -> list[TextVectors]:
        """The vectors of S texts. Cancelling the call takes what still waits out of the queue.

        Args:
            ids: each text's ids, both special tokens included.
            heads: heads that are wanted.
            client: who asks; clients share the engine evenly.
            deadline_s: seconds from now in which it must be done.

        Raises:
            QueueFullError: the queue is full, or those in it kept the request from being done in time.
            DeadlineError: the request is too much for its deadline.
            DrainingError: the server is about to stop.
            RequestTooLargeError: the request is larger than the whole queue.
            EngineError: the engine failed.
        """
        job = Job.of(client, heads, ids)
        self.check_room(job.tokens, client, deadline_s)
        if not job.texts:
            return []
        loop = asyncio.get_running_loop()
        request = _Request(job, loop.create_future(), loop.time(), [None] * len(ids), len(ids))
        self._requests[job] = request
        self._pace.begin(client, job.tokens)
        self._queue.add(job)
        self._pump()
        try:
            async with asyncio.timeout(deadline_s):
                await request.done
        except TimeoutError as error:
            raise self._late(job.tokens, deadline_s) from error
        finally:
            self._queue.remove(job)
            del self._requests[job]
            self._pace.end(client, job.tokens)
            self._observer.waiting(self._queue.tokens, self._queue.texts)
        return [vectors for vectors in request.results if vectors is not None]

    def _late(self, tokens: int, deadline_s: float) -> QueueFullError | DeadlineError:
        """Whose fault it is: that of the others who wait, or that of a request which is too much for its time."""
        reason = f"the request was not done within {deadline_s:g} s"
        if len(self._requests) > 1 and self._pace.seconds(tokens) <= deadline_s:
            return self._full(reason)
        return DeadlineError(f"{reason}; send less at a time, or allow more time")

    async def drain(self) -> None:
        """Take no more requests, and wait until those that were taken are done."""
        self._is_draining = True
        while self._requests or self._running:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        """Stop the threads; a run under way is waited for."""
        self._is_draining = True
        self._threads.shutdown()

    def _pump(self) -> None:
        """Start all runs that may start now."""
        while batch := self._next():
            self._start(batch)
        self._observer.waiting(self._queue.tokens, self._queue.texts)

    def _next(self) -> tuple[QueuedText, ...]:
        if len(self._running) < self._streams:
            return self._queue.take()
        if len(self._running) < self._streams + _SHORT_LANES and max(self._running) > _SHORT_RUN_TOKENS:
            return self._queue.take(_SHORT_RUN_TOKENS)
        return ()

    def _start(self, batch: tuple[QueuedText, ...]) -> None:
        loop = asyncio.get_running_loop()
        tokens = sum(text.tokens for text in batch)
        self._running.append(tokens)
        for text in batch:
            self._observer.queued(loop.time() - self._requests[text.job].added_s)
        start_s = loop.time()
        run = loop.run_in_executor(self._threads, self._timed, batch)
        run.add_done_callback(lambda done: self._finished(batch, tokens, start_s, done))

    def _timed(self, batch: tuple[QueuedText, ...]) -> tuple[list[TextVectors], float]:
        start_s = time.perf_counter()
        return self._runner.run(batch), time.perf_counter() - start_s

    def _finished(
        self,
        batch: tuple[QueuedText, ...],
        tokens: int,
        start_s: float,
        done: "asyncio.Future[tuple[list[TextVectors], float]]",
    ) -> None:
        self._running.remove(tokens)
        end_s = asyncio.get_running_loop().time()
        self._pace.ran(tokens, end_s - max(start_s, self._ended_s))
        self._ended_s = end_s
        self._pump()  # first: the engine must not wait while results are handed out
        if (error := None if done.cancelled() else done.exception()) is not None:
            self._fail(batch, error)
        elif not done.cancelled():
            vectors, duration_s = done.result()
            self._observer.ran(len(batch), tokens, duration_s)
            self._hand_out(batch, vectors)

    def _fail(self, batch: tuple[QueuedText, ...], error: BaseException) -> None:
        for job in {text.job for text in batch}:
            if request := self._requests.get(job):
                request.finish(error)

    def _hand_out(self, batch: tuple[QueuedText, ...], vectors: list[TextVectors]) -> None:
        for text, found in zip(batch, vectors, strict=True):
            if request := self._requests.get(text.job):
                request.results[text.index] = found
                request.missing -= 1
                if not request.missing:
                    request.finish()
