"""Closed loops, open loops, and the search for what a server can do; a thread and a connection for each request."""

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import numpy as np

from m3_bench.documents import Stage
from m3_bench.errors import BenchError
from m3_bench.load.requests import LoadRequest
from m3_runtime.errors import InputError

MOST_CLIENTS = 64
MOST_AT_ONCE = 1024  # requests of an open loop that wait for their answers
SATURATED = 1.05  # a server is saturated where twice the clients get less than so much more answered
SHARES = (50, 90, 99)  # percentiles of latencies
REFUSED = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_TIMEOUT_S, _LONGEST_WAIT_S, _LOOK_EVERY_S = 300.0, 1.0, 0.25
_KEPT_S = 1.0  # servers close connections that are idle for longer


@dataclass(frozen=True)
class Response:
    """An answer; status 0 where there was none, and then `content` says how the connection broke."""

    status: int
    content: bytes
    retry_after: str = ""

    @property
    def wait_s(self) -> float:
        """How long a client of a closed loop waits after it; as long as it is told, a second at most."""
        if self.status == HTTPStatus.OK:
            return 0.0
        return min(_LONGEST_WAIT_S, float(self.retry_after) if self.retry_after.isdecimal() else 0.5)


class Server:
    """Where requests go. Each thread has a connection, which is kept until `close`."""

    def __init__(self, url: str, key: str | None) -> None:
        """Take an address apart.

        Raises:
            InputError: it is no address.
        """
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise InputError(f"URL {url!r}: {error}") from error
        if parts.scheme not in ("http", "https") or not self._host:
            raise InputError(f"URL {url!r}: expected http://HOST:PORT or https://…")
        self._is_tls, self._prefix = parts.scheme == "https", parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._kept = threading.local()
        self._opened: list[http.client.HTTPConnection] = []

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._opened:
            connection.close()
        self._opened.clear()

    def ask(self, path: str, body: bytes | None = None) -> Response:
        """POST a body, or GET."""
        connection = self._connection()
        try:
            connection.request("GET" if body is None else "POST", self._prefix + path, body, self._headers)
            answer = connection.getresponse()
            found = Response(answer.status, answer.read(), answer.headers.get("retry-after", ""))
            self._kept.used_s = time.perf_counter()
            return found
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return Response(0, type(error).__name__.encode())

    def first_model(self) -> str:
        """The first model that an OpenAI server lists; "" where it lists none.

        Raises:
            BenchError: nobody answers.
        """
        found = self.ask("/v1/models")
        self.close()
        if found.status == 0:
            raise BenchError(f"{self._host} does not answer ({found.content.decode()}); is the server running?")
        try:
            return str(json.loads(found.content)["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            return ""

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._kept, "connection", None)
        if connection is None:
            kind = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
            connection = self._kept.connection = kind(self._host, self._port, timeout=_TIMEOUT_S)
            self._opened.append(connection)
        elif time.perf_counter() - self._kept.used_s > _KEPT_S:
            connection.close()  # it opens itself again
        self._kept.used_s = time.perf_counter()
        return connection


@dataclass(frozen=True, eq=False)
class _Exchange:
    """A request and what came of it; times in seconds from the start of the load."""

    request: LoadRequest
    due_s: float
    sent_s: float
    done_s: float
    response: Response


class Loader:
    """Puts a server under load for so many seconds a stage, and watches the memory of its processes."""

    def __init__(self, server: Server, requests: Sequence[LoadRequest], seconds: float, pids: Sequence[int]) -> None:
        self._server, self._requests, self._seconds, self._pids = server, requests, seconds, pids
        self._sent = 0

    def closed(self, clients: int, seconds: float | None = None) -> Stage:
        """Clients that send when they have their answer, for so many seconds (those of the loader by default)."""
        until_s = seconds or self._seconds

        def client(start_s: float) -> list[_Exchange]:
            found = []
            while (now_s := time.perf_counter() - start_s) < until_s:
                found.append(self._exchange(now_s, start_s))
                time.sleep(found[-1].response.wait_s)
            return found

        with self._stage(clients, 0.0) as (found, start_s), ThreadPoolExecutor(clients) as pool:
            for each in pool.map(client, [start_s] * clients):
                found.extend(each)
        return self._done

    def open(self, rate_per_s: float) -> Stage:
        """So many requests per second, at times drawn at random, whether or not earlier ones have been answered."""
        drawn = random.Random(7)  # noqa: S311 - the same times each time
        due_s, calls = drawn.expovariate(rate_per_s), []
        with self._stage(0, rate_per_s) as (found, start_s), ThreadPoolExecutor(MOST_AT_ONCE) as pool:
            while due_s < self._seconds:
                time.sleep(max(0.0, due_s - (time.perf_counter() - start_s)))
                calls.append(pool.submit(self._exchange, due_s, start_s))
                due_s += drawn.expovariate(rate_per_s)
            found.extend(call.result() for call in calls)
        return self._done

    def sweep(self) -> Iterator[Stage]:
        """Closed loops of one, two, four clients and so on, until twice as many get hardly more answered."""
        before = self.closed(1)
        yield before
        while before.clients < MOST_CLIENTS:
            now = self.closed(2 * before.clients)
            yield now
            if answered_per_s(now) < SATURATED * answered_per_s(before) or now.refusals_s:
                return
            before = now

    def _exchange(self, due_s: float, start_s: float) -> _Exchange:
        request = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        sent_s = time.perf_counter() - start_s
        response = self._server.ask(request.api.path, request.body)
        return _Exchange(request, due_s, sent_s, time.perf_counter() - start_s, response)

    @contextmanager
    def _stage(self, clients: int, rate_per_s: float) -> Iterator[tuple[list[_Exchange], float]]:
        """Collects what a loop finds into `self._done`, and looks at memory meanwhile."""
        found: list[_Exchange] = []
        resident: list[int] = []
        is_over = threading.Event()

        def look() -> None:
            import psutil

            processes = [psutil.Process(pid) for pid in self._pids]
            while processes and not is_over.wait(_LOOK_EVERY_S if resident else 0.0):
                resident.append(sum(process.memory_info().rss for process in processes))

        looking = threading.Thread(target=look)
        looking.start()
        start_s, cpu_s = time.perf_counter(), time.process_time()
        try:
            yield found, start_s
        finally:
            is_over.set()
            looking.join()
            self._server.close()
        cores = (time.process_time() - cpu_s) / (time.perf_counter() - start_s)
        self._done = _stage(found, clients, rate_per_s, cores, resident)


def answered_per_s(stage: Stage) -> float:
    """Answered requests per second."""
    return len(stage.latencies_s) / stage.seconds


def in_words(stage: Stage) -> str:
    """A stage in some lines; refusals and errors beside latencies, never in them."""
    asked = f"{stage.clients} clients" if stage.clients else f"{stage.rate_per_s:.1f} requests/s offered"
    counts = [f"{len(stage.latencies_s)} answered", f"{len(stage.refusals_s)} refused"]
    counts += [f"{count} × {error}" for error, count in stage.errors.items()]
    lines = [f"{asked}: {', '.join(counts)} in {stage.seconds:.1f} s"]
    if stage.latencies_s:
        rates = f"{answered_per_s(stage):.1f} requests/s, {stage.texts / stage.seconds:.1f} texts/s"
        tokens = f", {stage.tokens / stage.seconds:.0f} tokens/s" if stage.tokens else ""
        lines.append(f"  {rates}{tokens}; latency {_percentiles(stage.latencies_s)}")
    if stage.refusals_s:
        lines.append(f"  refused after {_percentiles(stage.refusals_s)}; Retry-After {', '.join(stage.retry_after)}")
    if stage.rate_per_s:
        late = f"99 % sent within {stage.late_s * 1e3:.1f} ms of their time"
        lines.append(f"  {late}; the client took {stage.client_cores:.2f} cores")
    if stage.resident_bytes:
        first, most = (number / 2**20 for number in (stage.resident_bytes[0], max(stage.resident_bytes)))
        lines.append(f"  resident {first:.0f} MiB before, {most:.0f} at most")
    if stage.cosine_min is not None:
        lines.append(f"  lowest cosine to the encoder's vectors: {stage.cosine_min:.8f}")
    return "\n".join(lines)


def _percentiles(seconds: Sequence[float]) -> str:
    found = [f"p{p} {value * 1e3:.1f}" for p, value in zip(SHARES, np.percentile(seconds, SHARES), strict=True)]
    return f"{', '.join(found)}, most {max(seconds) * 1e3:.1f} ms"


def _stage(found: Sequence[_Exchange], clients: int, rate_per_s: float, cores: float, resident: Sequence[int]) -> Stage:
    if not found:
        raise BenchError("not one request was sent; give more --seconds or a higher --rate")
    good = [one for one in found if one.response.status == HTTPStatus.OK]
    refused = [one for one in found if one.response.status in REFUSED]
    others = [one.response for one in found if one.response.status not in (HTTPStatus.OK, *REFUSED)]
    answers = [one.request.api.read(one.response.content, len(one.request.texts)) for one in good]
    pairs = zip(good, answers, strict=True)
    cosines = [one.request.cosine_min(answer) for one, answer in pairs if one.request.expected is not None]
    return Stage(
        clients=clients,
        rate_per_s=rate_per_s,
        seconds=max(one.done_s for one in found),
        latencies_s=tuple(round(one.done_s - one.due_s, 6) for one in good),
        refusals_s=tuple(round(one.done_s - one.due_s, 6) for one in refused),
        retry_after=tuple(sorted({one.response.retry_after for one in refused})),
        errors=Counter(str(one.status or one.content.decode()) for one in others),
        texts=sum(len(one.request.texts) for one in good),
        tokens=sum(answer.tokens for answer in answers),
        late_s=float(np.percentile([one.sent_s - one.due_s for one in found], 99)),
        client_cores=cores,
        resident_bytes=tuple(resident),
        cosine_min=min(cosines, default=None),
    )
