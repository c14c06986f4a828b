"""Admission: keys, sizes, times, and clients that disconnect, before any route. A plain ASGI middleware.

The body is read here, whole, before anything looks at it: so its size and time are bounded, and afterwards the only
thing that can still come from the client is that it has disconnected. Then the call is cancelled, and its texts leave
the queue.

A client that sends slowly cannot keep the others out. Only the body of a POST with a valid key is read. A body counts
as it arrives, not as it was announced; a request counts when its body is there; and one client can hold only a share of
either.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3_runtime.errors import DrainingError, InputError, M3Error, QueueFullError, RequestTooLargeError
from m3_runtime.server.addresses import OPERATION_PATHS
from m3_runtime.server.answers import Problem, refusal, refusal_of
from m3_runtime.server.auth import ApiKeys
from m3_runtime.server.service import Service
from m3_runtime.server.shares import Holding, Shares
from m3_runtime.server.tracing import RECORD, RequestRecord

_log = logging.getLogger("m3_runtime.server")

CALL = "m3.call"
"""Where routes find their `Call` in the scope."""

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
"""Answered without a key (POST / is /embed, and needs one)."""

_NOT_QUEUED = frozenset({"/tokenize", "/decode"})
_DEADLINE_HEADER = "x-m3-deadline-ms"
_MILLISECONDS = re.compile(r"0{0,9}[1-9]\d{0,8}", re.ASCII)

_MIN_BYTES_PER_S = 64 * 1024
"""A body that takes longer than `body_timeout_s` must come at least so fast."""


class _RefusedError(Exception):
    """The request goes no further, for a reason that only HTTP knows."""

    def __init__(self, status: HTTPStatus, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.status, self.problem = status, problem


class _DisconnectedError(Exception):
    """The client has disconnected."""


class Admission:
    """Lets in what the limits allow. Counts, logs and bounds it."""

    def __init__(self, app: ASGIApp, service: Service, keys: ApiKeys | None) -> None:
        """Wrap an app; with `keys` None everyone is let in."""
        self._app, self._service, self._keys = app, service, keys
        self._limits = limits = service.settings.limits
        self._open_paths = OPEN_PATHS | ({"/metrics"} if service.settings.open_metrics else frozenset())
        self._requests = Shares(limits.max_requests + max(1, limits.max_requests // 4), limits.max_requests)
        self._bytes = Shares(limits.max_held_bytes, limits.max_held_bytes // 2)
        self._unanswered: dict[RequestRecord, asyncio.Timeout] = {}
        self._is_stopped = False
        service.on_stop.append(self._stop)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record: RequestRecord = scope[RECORD]
        try:
            await self._admit(scope, receive, send, record)
        except _RefusedError as error:
            answer = refusal(record.path, error.status, error.problem, str(error))
            await answer(scope, receive, send)
        except M3Error as error:
            await refusal_of(record.path, error)(scope, receive, send)
        except _DisconnectedError:
            record.status = 499  # as nginx calls it; nobody reads it
        except Exception as error:
            # Its message may hold a text, so only its kind and place are logged.
            _log.error("failed", extra={"path": record.path, "error": type(error).__name__, "at": _place(error)})
            if not record.status:
                await refusal_of(record.path, error)(scope, receive, send)
        finally:
            self._count(record)

    def _stop(self) -> None:
        """Refuse, with 503, all requests that have no answer yet: the server ends now."""
        self._is_stopped = True
        for record, limit in self._unanswered.items():
            if not record.status:
                limit.reschedule(asyncio.get_running_loop().time())

    async def _admit(self, scope: Scope, receive: Receive, send: Send, record: RequestRecord) -> None:
        record.client = client = self._client(scope, record)
        if record.method != "POST":
            await self._app(scope, _replay(b""), send)
            return
        is_queued = record.path not in _NOT_QUEUED
        deadline_s, announced = self._deadline_s(record.headers), record.headers.get("content-length", "0")
        announced_bytes = int(announced) if announced.isdecimal() else 0
        self._check_size(announced_bytes)
        with (
            self._service.call(client) as call,
            self._requests.holding(client) as requests,
            self._bytes.holding(client) as held_bytes,
        ):
            scope[CALL] = call
            if is_queued:
                self._service.check_room(client, announced_bytes, deadline_s)
            async with self._until_stopped(record):
                if not self._requests.has_room(client, 1):
                    raise _busy(f"{self._requests.total} requests are under way")
                body = await self._body(receive, held_bytes)
                if not requests.take(1):
                    raise _busy(f"{self._requests.total} requests are under way")
                if is_queued and len(body) > announced_bytes:  # its size was not announced
                    self._service.check_room(client, len(body), deadline_s)
                call.until_s = asyncio.get_running_loop().time() + deadline_s
                await self._answer(scope, receive, send, body)

    @asynccontextmanager
    async def _until_stopped(self, record: RequestRecord) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(0 if self._is_stopped else None) as limit:
                self._unanswered[record] = limit
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise DrainingError("the server stops before the request is done; send it again, elsewhere") from None
        finally:
            del self._unanswered[record]

    def _client(self, scope: Scope, record: RequestRecord) -> str:
        """Who asks: the name of its key, or its address."""
        is_open = record.path in self._open_paths and record.method != "POST"
        if self._keys is None or is_open:
            return str((scope.get("client") or ("local",))[0])
        scheme, _, key = (only_value(record.headers, "authorization") or "").partition(" ")
        name = self._keys.name_of(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            raise _RefusedError(
                HTTPStatus.UNAUTHORIZED,
                Problem.UNAUTHORIZED,
                "a key is needed: send the header Authorization: Bearer KEY with a key of this server",
            )
        return name

    def _check_size(self, size: int) -> None:
        most = self._limits.max_body_bytes
        if size > most:
            raise RequestTooLargeError(f"the body is too large, the limit is {most} bytes; send the texts in parts")

    def _deadline_s(self, headers: Headers) -> float:
        wanted = only_value(headers, _DEADLINE_HEADER)
        if wanted is None:
            return self._limits.deadline_s
        if not _MILLISECONDS.fullmatch(wanted):
            raise InputError(f"the header {_DEADLINE_HEADER} must be a whole number of milliseconds above 0")
        return min(self._limits.deadline_s, int(wanted) / 1000)

    async def _body(self, receive: Receive, held_bytes: Holding) -> bytes:
        """A request's body, of bounded size and in bounded time, counted as it arrives."""
        parts, size, start_s = [], 0, asyncio.get_running_loop().time()
        most_s = self._limits.body_timeout_s
        try:
            async with asyncio.timeout(most_s) as limit:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _DisconnectedError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    self._check_size(size)
                    if not held_bytes.take(len(parts[-1])):
                        raise _busy(f"{self._bytes.total} bytes of requests are under way")
                    if not message.get("more_body", False):
                        return b"".join(parts)
                    limit.reschedule(start_s + most_s + size / _MIN_BYTES_PER_S)
        except TimeoutError:
            raise _RefusedError(
                HTTPStatus.REQUEST_TIMEOUT,
                Problem.TIMEOUT,
                f"the body did not arrive within {most_s:g} s, and a second more for each {_MIN_BYTES_PER_S} bytes",
            ) from None

    async def _answer(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        """Run the app; cancel it if the client disconnects."""
        answering = asyncio.ensure_future(self._app(scope, _replay(body), send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise _DisconnectedError
            answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    def _count(self, record: RequestRecord) -> None:
        metrics, duration_s, route = self._service.metrics, time.perf_counter() - record.start_s, record.route
        shown = route or "other"  # clients invent paths, and each would be counted by its own name
        metrics.requests.labels(shown, str(record.status)).inc()
        metrics.request_seconds.labels(shown).observe(duration_s)
        if record.problem:
            metrics.rejections.labels(record.problem).inc()
        if route not in OPERATION_PATHS:
            facts = {"method": record.method, "route": shown, "status": record.status, "client": record.client}
            _log.info("request", extra={**facts, "duration_ms": round(1000 * duration_s, 2)})


def _replay(body: bytes) -> Receive:
    """What a client has sent, for the app to receive; then nothing more comes."""
    waiting = [body]

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()  # until cancelled
        return {"type": "http.request", "body": waiting.pop(), "more_body": False}

    return receive


def only_value(headers: Headers, name: str) -> str | None:
    """A header's value; None where it is not sent.

    Raises:
        InputError: it is sent several times and says different things; proxies do not agree which of them holds.
    """
    values = set(headers.getlist(name))
    if len(values) > 1:
        raise InputError(f"the header {name} is sent {len(values)} times with different values; send it once")
    return next(iter(values), None)


def _busy(reason: str) -> QueueFullError:
    return QueueFullError(f"the server is busy: {reason}; try again in 1 s", 1)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
