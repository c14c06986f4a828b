"""Admission: keys, sizes, times, and clients that disconnect, before any route. A plain ASGI middleware.

The body is read here, whole, before anything looks at it: so its size and time are bounded, and afterwards the only
thing that can still come from the client is that it has disconnected. Then the call is cancelled, and its texts leave
the queue.

Nobody can shut the door by sending slowly. Only a POST with a right key has a body; of anything else none is read, and
it counts nowhere. A body counts as it arrives, not as it was announced; a request counts when its body is there. And
one client can hold only a share of either.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3_runtime.errors import DrainingError, InputError, M3Error, QueueFullError, RequestTooLargeError
from m3_runtime.server.addresses import OPERATION_PATHS, Addresses
from m3_runtime.server.answers import PROBLEM, Problem, refusal, refusal_of
from m3_runtime.server.auth import ApiKeys
from m3_runtime.server.service import Call, Service
from m3_runtime.server.settings import RequestLimits
from m3_runtime.server.shares import Shares

_log = logging.getLogger("m3_runtime.server")

CALL = "m3.call"
"""Where routes find their `Call` in the scope."""

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
"""Answered without a key (POST / is /embed, and needs one)."""

_METRICS = "/metrics"
_NOT_QUEUED = frozenset({"/tokenize", "/decode"})
_DEADLINE_HEADER = "x-m3-deadline-ms"
_MILLISECONDS = re.compile(r"0*[1-9]\d{0,8}", re.ASCII)

_MIN_BYTES_PER_S = 64 * 1024
"""A body that takes longer than `body_timeout_s` must come at least so fast."""


class _RefusedError(Exception):
    """The request goes no further, for a reason that only HTTP knows."""

    def __init__(self, status: HTTPStatus, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.status, self.problem = status, problem


class _GoneError(Exception):
    """The client has disconnected."""


@dataclass(eq=False)
class _Exchange:
    """What is recorded about a request while it is answered."""

    path: str
    method: str
    start_s: float
    client: str = ""
    status: int = 0
    problem: str = ""
    held_bytes: int = 0
    held_requests: int = 0


class Admission:
    """Lets in what the limits allow. Counts, logs and bounds it."""

    def __init__(self, app: ASGIApp, service: Service, keys: ApiKeys | None, addresses: Addresses) -> None:
        """Wrap an app.

        Args:
            app: what answers.
            service: whose limits hold and whose counts are kept.
            keys: keys that let in; None lets everyone in.
            addresses: paths that exist; others are counted as one.
        """
        self._app = app
        self._service = service
        self._limits: RequestLimits = service.settings.limits
        self._keys = keys
        self._addresses = addresses
        self._open_paths = OPEN_PATHS | ({_METRICS} if service.settings.open_metrics else frozenset())
        limits = self._limits
        self._requests = Shares(limits.max_requests + max(1, limits.max_requests // 4), limits.max_requests)
        self._bytes = Shares(limits.max_held_bytes, limits.max_held_bytes // 2)
        self._unanswered: dict[_Exchange, asyncio.Timeout] = {}
        self._is_stopped = False
        service.on_stop.append(self._stop)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope["path"], scope["method"], time.perf_counter())

        async def recording(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                exchange.problem = Headers(raw=message["headers"]).get(PROBLEM, "")
            await send(message)

        try:
            await self._admit(scope, receive, recording, exchange)
        except _RefusedError as error:
            answer = refusal(exchange.path, error.status, error.problem, str(error))
            await answer(scope, receive, recording)
        except M3Error as error:
            await refusal_of(exchange.path, error)(scope, receive, recording)
        except _GoneError:
            exchange.status = 499  # as nginx calls it; nobody reads it
        except Exception as error:
            # Its message may hold a text, so only its kind and place are logged.
            _log.error("failed", extra={"path": exchange.path, "error": type(error).__name__, "at": _place(error)})
            if not exchange.status:
                await refusal_of(exchange.path, error)(scope, receive, recording)
        finally:
            self._record(exchange)

    def _stop(self) -> None:
        """Refuse, with 503, all requests that have no answer yet: the server ends now."""
        self._is_stopped = True
        for exchange, limit in self._unanswered.items():
            if not exchange.status:
                limit.reschedule(asyncio.get_running_loop().time())

    async def _admit(self, scope: Scope, receive: Receive, send: Send, exchange: _Exchange) -> None:
        headers = Headers(scope=scope)
        exchange.client = self._client(scope, headers, exchange)
        if exchange.method != "POST":
            await self._app(scope, _Replay(b""), send)
            return
        scope[CALL] = call = Call(exchange.client, self._deadline_s(headers), self._announced_bytes(headers))
        if exchange.path not in _NOT_QUEUED:
            self._service.check_room(call)
        is_answered = False
        try:
            async with self._until_stopped(exchange):
                self._check_requests(exchange.client)
                body = await self._body(receive, exchange)
                self._hold_request(exchange)
                if exchange.path not in _NOT_QUEUED and len(body) > call.body_bytes:  # its size was not announced
                    call.body_bytes = len(body)
                    self._service.check_room(call)
                await self._answer(scope, receive, send, body)
                is_answered = True
        finally:
            self._service.end(call, is_answered=is_answered)
            self._requests.give_back(exchange.client, exchange.held_requests)
            self._bytes.give_back(exchange.client, exchange.held_bytes)

    @asynccontextmanager
    async def _until_stopped(self, exchange: _Exchange) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(0 if self._is_stopped else None) as limit:
                self._unanswered[exchange] = limit
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise DrainingError("the server stops before the request is done; send it again, elsewhere") from None
        finally:
            del self._unanswered[exchange]

    def _client(self, scope: Scope, headers: Headers, exchange: _Exchange) -> str:
        """Who asks: the name of its key, or its address."""
        is_open = exchange.path in self._open_paths and exchange.method != "POST"
        if self._keys is None or is_open:
            return str((scope.get("client") or ("local",))[0])
        scheme, _, key = (only_value(headers, "authorization") or "").partition(" ")
        name = self._keys.name_of(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            raise _RefusedError(
                HTTPStatus.UNAUTHORIZED,
                Problem.UNAUTHORIZED,
                "a key is needed: send the header Authorization: Bearer KEY with a key of this server",
            )
        return name

    def _announced_bytes(self, headers: Headers) -> int:
        announced = headers.get("content-length", "0")
        size = int(announced) if announced.isdecimal() else 0
        self._check_size(size)
        return size

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

    def _check_requests(self, client: str) -> None:
        if not self._requests.has_room(client, 1):
            raise _busy(f"{self._requests.total} requests are under way")

    def _hold_request(self, exchange: _Exchange) -> None:
        self._check_requests(exchange.client)
        self._requests.take(exchange.client, 1)
        exchange.held_requests = 1

    def _hold_bytes(self, exchange: _Exchange, size: int) -> None:
        if not self._bytes.take(exchange.client, size):
            raise _busy(f"{self._bytes.total} bytes of requests are under way")
        exchange.held_bytes += size

    async def _body(self, receive: Receive, exchange: _Exchange) -> bytes:
        """A request's body, of bounded size and in bounded time, counted as it arrives."""
        parts, size, start_s = [], 0, asyncio.get_running_loop().time()
        most_s = self._limits.body_timeout_s
        try:
            async with asyncio.timeout(most_s) as limit:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    self._check_size(size)
                    self._hold_bytes(exchange, len(parts[-1]))
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
        answering = asyncio.ensure_future(self._app(scope, _Replay(body), send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise _GoneError
            answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)

    def _record(self, exchange: _Exchange) -> None:
        metrics, duration_s = self._service.metrics, time.perf_counter() - exchange.start_s
        route = self._addresses.route_of(exchange.path) or "other"
        metrics.requests.labels(route, str(exchange.status)).inc()
        metrics.request_seconds.labels(route).observe(duration_s)
        if exchange.problem:
            metrics.rejections.labels(exchange.problem).inc()
        if exchange.path not in OPERATION_PATHS:
            facts = {"method": exchange.method, "route": route, "status": exchange.status, "client": exchange.client}
            _log.info("request", extra={**facts, "duration_ms": round(1000 * duration_s, 2)})


class _Replay:
    """What a client has sent, for the app to receive; then nothing more comes."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()  # until cancelled
        body, self._body = self._body or b"", None
        return {"type": "http.request", "body": body, "more_body": False}


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
