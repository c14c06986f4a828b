"""What stands before every route: keys, sizes, times, JSON, and clients that go away. A plain ASGI middleware.

The body is read here, whole, before anything looks at it: so its size and time are bounded, and afterwards the only
thing that can still come from the client is that he has gone. Then the call is cancelled, and its texts leave the
queue.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m3_runtime.errors import M3Error
from m3_runtime.server.answers import Problem, refusal, refusal_of
from m3_runtime.server.keys import ApiKeys
from m3_runtime.server.service import Call, Service
from m3_runtime.server.settings import Limits

_log = logging.getLogger("m3_runtime.server")

CALL = "m3.call"
"""Where routes find their `Call` in the scope."""

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
"""Answered without a key (POST / is /embed, and needs one)."""

_QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})
_NOT_QUEUED = frozenset({"/tokenize"})
_DEADLINE_HEADER = "x-m3-deadline-ms"


class _RefusedError(Exception):
    """The request goes no further."""

    def __init__(self, status: int, problem: Problem, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status, self.problem, self.message, self.retry_after_s = status, problem, message, retry_after_s


class _GoneError(Exception):
    """The client has gone before its request was whole."""


@dataclass
class _Exchange:
    """What is noted about a request while it is answered."""

    path: str
    method: str
    start_s: float
    client: str = ""
    status: int = 0
    problem: str = ""
    has_started: bool = False


class Gate:
    """Lets in what may come in. Counts, logs and bounds it."""

    def __init__(self, app: ASGIApp, service: Service, keys: ApiKeys | None, paths: Iterable[str]) -> None:
        """Stand before an app.

        Args:
            app: what answers.
            service: whose limits hold and whose counts are kept.
            keys: keys that let in; None lets everyone in.
            paths: paths that exist; others are counted as one, so that clients cannot invent labels.
        """
        self._app = app
        self._service = service
        self._keys = keys
        self._paths = frozenset(paths)
        self._requests = 0
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope["path"], scope["method"], time.perf_counter())
        noting = self._noting(exchange, send)
        try:
            await self._let_in(scope, receive, noting, exchange)
        except _RefusedError as no:
            answer = refusal(exchange.path, no.status, no.problem, no.message, no.retry_after_s)
            await answer(scope, receive, noting)
        except M3Error as error:
            await refusal_of(exchange.path, error)(scope, receive, noting)
        except _GoneError:
            exchange.status = 499  # as nginx calls it; nobody reads it
        except Exception as error:
            # Its message may hold a text, so only its kind and place are logged.
            _log.error("failed", extra={"path": exchange.path, "error": type(error).__name__, "at": _place(error)})
            if not exchange.has_started:
                answer = refusal(exchange.path, 500, Problem.BACKEND, "the server failed; its log says where")
                await answer(scope, receive, noting)
        finally:
            self._note(exchange)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send, exchange: _Exchange) -> None:
        headers = Headers(scope=scope)
        exchange.client = self._client(scope, headers, exchange)
        limits = self._service.settings.limits
        if self._requests >= limits.max_requests:
            raise _RefusedError(
                HTTPStatus.TOO_MANY_REQUESTS, Problem.OVERLOADED,
                f"the server is busy: {self._requests} requests are under way; try again in 1 s", 1,
            )  # fmt: skip
        size = _announced_bytes(headers, limits)
        scope[CALL] = call = Call(exchange.client, _deadline_s(headers, limits), size)
        if exchange.method == "POST" and exchange.path not in _NOT_QUEUED:
            self._service.check_room(call)
        self._requests += 1
        held = 0
        try:
            held = self._hold(size)
            body = await _body(receive, limits)
            if len(body) > size:
                held += self._hold(len(body) - size)
            _check_json(body, headers)
            await self._answer(scope, receive, send, body)
        finally:
            self._requests -= 1
            self._held_bytes -= held

    def _client(self, scope: Scope, headers: Headers, exchange: _Exchange) -> str:
        is_open = exchange.path in OPEN_PATHS and exchange.method in ("GET", "HEAD")
        if self._keys is None or is_open:
            return str((scope.get("client") or ("local",))[0])
        scheme, _, key = headers.get("authorization", "").partition(" ")
        name = self._keys.name_of(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            raise _RefusedError(
                HTTPStatus.UNAUTHORIZED, Problem.UNAUTHORIZED,
                "a key is needed: send the header Authorization: Bearer KEY with a key of this server",
            )  # fmt: skip
        return name

    def _hold(self, size: int) -> int:
        limits = self._service.settings.limits
        if self._held_bytes + size > limits.max_held_bytes:
            raise _RefusedError(
                HTTPStatus.TOO_MANY_REQUESTS, Problem.OVERLOADED,
                f"the server is busy: {self._held_bytes} bytes of requests are under way; try again in 1 s", 1,
            )  # fmt: skip
        self._held_bytes += size
        return size

    async def _answer(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        """Run the app; cancel it if the client goes."""
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

    def _noting(self, exchange: _Exchange, send: Send) -> Send:
        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.has_started = True
                exchange.status = message["status"]
                exchange.problem = Headers(raw=message["headers"]).get("x-m3-problem", "")
            await send(message)

        return noting

    def _note(self, exchange: _Exchange) -> None:
        metrics, duration_s = self._service.metrics, time.perf_counter() - exchange.start_s
        route = exchange.path if exchange.path in self._paths else "other"
        metrics.requests.labels(route, str(exchange.status)).inc()
        metrics.request_seconds.labels(route).observe(duration_s)
        if exchange.problem:
            metrics.rejections.labels(exchange.problem).inc()
        if exchange.path not in _QUIET_PATHS:
            noted = {"method": exchange.method, "route": route, "status": exchange.status, "client": exchange.client}
            _log.info("request", extra={**noted, "duration_ms": round(1000 * duration_s, 2)})


class _Replay:
    """What a client has sent, for the app to receive; then nothing more comes."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> Message:
        if self._body is None:
            await asyncio.Event().wait()  # until cancelled
        body, self._body = self._body or b"", None
        return {"type": "http.request", "body": body, "more_body": False}


def _announced_bytes(headers: Headers, limits: Limits) -> int:
    announced = headers.get("content-length", "0")
    size = int(announced) if announced.isdecimal() else 0
    if size > limits.max_body_bytes:
        raise _too_large(limits)
    return size


async def _body(receive: Receive, limits: Limits) -> bytes:
    """A request's body, of bounded size and in bounded time."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _GoneError
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limits.max_body_bytes:
                    raise _too_large(limits)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise _RefusedError(
            HTTPStatus.REQUEST_TIMEOUT, Problem.TIMEOUT, f"the body did not arrive within {limits.body_timeout_s:g} s"
        ) from None


def _too_large(limits: Limits) -> _RefusedError:
    return _RefusedError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, Problem.TOO_LARGE,
        f"the body is too large, the limit is {limits.max_body_bytes} bytes; send the texts in parts",
    )  # fmt: skip


def _check_json(body: bytes, headers: Headers) -> None:
    """Refuse what is no JSON: not UTF-8, NaN, nested without end, half a surrogate pair. Routes see none of it."""
    if not body or "json" not in headers.get("content-type", "").lower():
        return
    try:
        from_json(body, allow_inf_nan=False, cache_strings=False)
    except ValueError as error:
        raise _RefusedError(
            HTTPStatus.UNPROCESSABLE_ENTITY, Problem.VALIDATION, f"the body is not JSON: {error}"
        ) from None


def _deadline_s(headers: Headers, limits: Limits) -> float:
    wanted = headers.get(_DEADLINE_HEADER)
    if wanted is None:
        return limits.deadline_s
    if not wanted.isdecimal() or not 0 < int(wanted) < 10**9:
        raise _RefusedError(
            HTTPStatus.UNPROCESSABLE_ENTITY, Problem.VALIDATION,
            f"the header {_DEADLINE_HEADER} must be a whole number of milliseconds above 0",
        )  # fmt: skip
    return min(limits.deadline_s, int(wanted) / 1000)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def not_found(path: str) -> Response:
    """The answer where nothing is."""
    return refusal(path, HTTPStatus.NOT_FOUND, Problem.NOT_FOUND, "there is nothing at this path; see GET /docs")
