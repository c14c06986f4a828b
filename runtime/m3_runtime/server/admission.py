"""Admission: keys, sizes, times, and clients that disconnect, before any route. A plain ASGI middleware.

The body is read here, whole, before anything looks at it: so its size and time are bounded, and afterwards the only
thing that can still come from the client is that it has disconnected. Then the call is cancelled, and its texts leave
the queue.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3_runtime.errors import InputError, M3Error, QueueFullError, RequestTooLargeError
from m3_runtime.server.addresses import with_usual_path
from m3_runtime.server.answers import Problem, refusal, refusal_of
from m3_runtime.server.auth import ApiKeys
from m3_runtime.server.service import Call, Service
from m3_runtime.server.settings import RequestLimits

_log = logging.getLogger("m3_runtime.server")

CALL = "m3.call"
"""Where routes find their `Call` in the scope."""

_GETS = ("GET", "HEAD")

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
"""Answered without a key (POST / is /embed, and needs one)."""

_OPERATION_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""Answered however busy the server is, and not logged."""

_NOT_QUEUED = frozenset({"/tokenize", "/decode"})
_DEADLINE_HEADER = "x-m3-deadline-ms"


class _RefusedError(Exception):
    """The request goes no further, for a reason that only HTTP knows."""

    def __init__(self, status: HTTPStatus, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.status, self.problem = status, problem


class _GoneError(Exception):
    """The client has disconnected."""


@dataclass
class _Exchange:
    """What is recorded about a request while it is answered."""

    path: str
    method: str
    start_s: float
    client: str = ""
    status: int = 0
    problem: str = ""
    held_bytes: int = 0


class Admission:
    """Lets in what the limits allow. Counts, logs and bounds it."""

    def __init__(self, app: ASGIApp, service: Service, keys: ApiKeys | None, paths: Iterable[str]) -> None:
        """Wrap an app.

        Args:
            app: what answers.
            service: whose limits hold and whose counts are kept.
            keys: keys that let in; None lets everyone in.
            paths: paths that exist; others are counted as one, so that clients cannot invent labels.
        """
        self._app = app
        self._service = service
        self._limits: RequestLimits = service.settings.limits
        self._keys = keys
        self._paths = frozenset(paths)
        self._requests = 0
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = with_usual_path(scope)
        exchange = _Exchange(scope["path"], scope["method"], time.perf_counter())

        async def recording(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                exchange.problem = Headers(raw=message["headers"]).get("x-m3-problem", "")
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

    async def _admit(self, scope: Scope, receive: Receive, send: Send, exchange: _Exchange) -> None:
        headers = Headers(scope=scope)
        exchange.client = self._client(scope, headers, exchange)
        if exchange.path in _OPERATION_PATHS and exchange.method in _GETS:
            await self._app(scope, _Replay(b""), send)
            return
        if self._requests >= self._limits.max_requests:
            raise _busy(f"{self._requests} requests are under way")
        size = self._announced_bytes(headers)
        is_queued = exchange.method == "POST" and exchange.path not in _NOT_QUEUED
        scope[CALL] = call = Call(exchange.client, self._deadline_s(headers), size)
        if is_queued:
            self._service.check_room(call)
        self._requests += 1
        try:
            self._hold(exchange, size)
            body = await self._body(receive, exchange)
            if is_queued and len(body) > size:  # its size was not announced
                scope[CALL] = call = replace(call, body_bytes=len(body))
                self._service.check_room(call)
            await self._answer(scope, receive, send, body)
        finally:
            self._requests -= 1
            self._held_bytes -= exchange.held_bytes

    def _client(self, scope: Scope, headers: Headers, exchange: _Exchange) -> str:
        """Who asks: the name of its key, or its address."""
        is_open = exchange.path in OPEN_PATHS and exchange.method in _GETS
        if self._keys is None or is_open:
            return str((scope.get("client") or ("local",))[0])
        scheme, _, key = headers.get("authorization", "").partition(" ")
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
        wanted = headers.get(_DEADLINE_HEADER)
        if wanted is None:
            return self._limits.deadline_s
        if not wanted.isdecimal() or not 0 < int(wanted) < 10**9:
            raise InputError(f"the header {_DEADLINE_HEADER} must be a whole number of milliseconds above 0")
        return min(self._limits.deadline_s, int(wanted) / 1000)

    def _hold(self, exchange: _Exchange, size: int) -> None:
        """Count so many bytes more among those that the server holds."""
        if self._held_bytes + size > self._limits.max_held_bytes:
            raise _busy(f"{self._held_bytes} bytes of requests are under way")
        self._held_bytes += size
        exchange.held_bytes += size

    async def _body(self, receive: Receive, exchange: _Exchange) -> bytes:
        """A request's body, of bounded size and in bounded time; what was not announced is counted as it arrives."""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    self._check_size(size)
                    self._hold(exchange, max(0, size - exchange.held_bytes))
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise _RefusedError(
                HTTPStatus.REQUEST_TIMEOUT,
                Problem.TIMEOUT,
                f"the body did not arrive within {self._limits.body_timeout_s:g} s",
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
        route = exchange.path if exchange.path in self._paths else "other"
        metrics.requests.labels(route, str(exchange.status)).inc()
        metrics.request_seconds.labels(route).observe(duration_s)
        if exchange.problem:
            metrics.rejections.labels(exchange.problem).inc()
        if exchange.path not in _OPERATION_PATHS:
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
