"""A server under load, ours or anybody's: closed loops, open loops, and the search for what it can do."""

import asyncio
import base64
import io
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import cycle
from typing import Any

import httpx2
import numpy as np
import psutil

from m3_bench.documents import Stage
from m3_bench.errors import BenchError
from m3_export.verify.parity import cosines
from m3_runtime import Encoding, M3Encoder
from m3_runtime.errors import InputError

WORDS = (
    "river", "Brücke", "мост", "桥", "stone", "agua", "vent", "clear", "number", "seven", "garden", "лето", "house",
    "paper", "signal", "winter", "orden", "and", "the", "of", "without", "machine", "language", "query", "answer",
)  # fmt: skip
POOL = 61  # different requests, again and again; a prime, so that batches keep changing
MOST_CLIENTS = 64
MOST_AT_ONCE = 1024  # requests of an open loop that wait for their answers
SATURATED = 1.05  # a server is saturated where twice the clients get less than so much more answered
SAME = 0.99999  # lowest cosine between a text alone and in any batch
REFUSED = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_TIMEOUT_S, _LONGEST_WAIT_S, _LOOK_EVERY_S = 300.0, 1.0, 0.25
_KEPT_S = 1.0  # servers close connections that are idle for longer


@dataclass(frozen=True)
class Answered:
    """Vectors of an answer by head, as rows of all its texts, and its tokens (0 where the server does not count)."""

    vectors: Mapping[str, np.ndarray]
    tokens: int


@dataclass(frozen=True)
class Api:
    """An HTTP API for vectors: its path, the body for texts and a model's name, and how answers are read."""

    path: str
    body: Callable[[Sequence[str], str], Mapping[str, Any]]
    read: Callable[[bytes, int], Answered]


@dataclass(frozen=True, eq=False)
class LoadRequest:
    """A request; `expected` is what the encoder gives for its texts, None if nothing is compared."""

    api: Api
    body: bytes
    texts: tuple[str, ...]
    expected: Encoding | None

    def cosine_min(self, answered: Answered) -> float | None:
        """The lowest cosine of an answer's vectors to the expected ones, -1 where they cannot be compared."""
        if self.expected is None:
            return None
        expected = {"dense": self.expected.dense_vecs}
        if "colbert" in answered.vectors:
            assert self.expected.sparse is not None and self.expected.colbert_vecs is not None
            if not np.array_equal(answered.vectors["sparse_ids"], self.expected.sparse.ids):
                return -1.0
            expected["sparse"] = self.expected.sparse.weights[None]
            expected["colbert"] = np.concatenate(list(self.expected.colbert_vecs))
        return min(_cosine_min(answered.vectors[head], rows) for head, rows in expected.items())


def _cosine_min(found: np.ndarray, expected: Any) -> float:
    if found.shape != expected.shape:
        return -1.0
    if np.array_equal(found, expected):  # rows without a direction, too
        return 1.0
    return float(np.nan_to_num(cosines(found, expected), nan=-1.0).min())  # no NaN, which `min` may pass over


def made_requests(
    apis: Sequence[str], model: str, texts: int, words: int, encoder: M3Encoder | None
) -> Iterator[LoadRequest]:
    """Yield the pool: requests of one up to twice as many texts, of half to one and a half times as many words.

    The APIs take turns; OpenAI's is asked for `model`. Without an encoder nothing is expected of the vectors.
    """
    for number in range(POOL):
        draw = random.Random(number)  # noqa: S311 - the same texts each time
        counts = (max(1, round(words * draw.uniform(0.5, 1.5))) for _ in range(draw.randint(1, 2 * texts - 1)))
        made = tuple(" ".join(draw.choices(WORDS, k=count)) for count in counts)
        api, expected = APIS[apis[number % len(apis)]], None
        if encoder is not None:
            longest = encoder.max_tokens
            expected = encoder.encode(list(made), max_length=longest, return_sparse=True, return_colbert_vecs=True)
        yield LoadRequest(api, json.dumps(api.body(made, model)).encode(), made, expected)


def _read_openai(content: bytes, _texts: int) -> Answered:
    answer = json.loads(content)
    items = sorted(answer["data"], key=lambda item: int(item["index"]))
    rows = [item["embedding"] for item in items]
    dense = np.array([np.frombuffer(base64.b64decode(r), "<f4") if isinstance(r, str) else r for r in rows])
    return Answered({"dense": dense}, int((answer.get("usage") or {}).get("total_tokens", 0)))


def _read_m3(content: bytes, texts: int) -> Answered:
    found = np.load(io.BytesIO(content), allow_pickle=False)
    vectors = {
        "dense": found["dense_vecs"],
        "sparse": found["sparse_weights"][None],
        "sparse_ids": found["sparse_ids"],
        "colbert": found["colbert_vecs"],
    }
    return Answered(vectors, len(found["colbert_vecs"]) + texts)  # a row for every token but the first


APIS: Mapping[str, Api] = {
    "openai": Api(
        "/v1/embeddings",
        lambda texts, model: {"model": model, "input": texts, "encoding_format": "base64"},
        _read_openai,
    ),
    "tei": Api(
        "/embed",
        lambda texts, _: {"inputs": texts, "truncate": True},
        lambda content, _: Answered({"dense": np.array(json.loads(content))}, 0),
    ),
    "m3": Api("/m3/encode", lambda texts, _: {"texts": texts, "format": "npz"}, _read_m3),
}


@dataclass(frozen=True)
class Server:
    """Where requests go: an address without its `/v1`, and an API key if it wants one."""

    url: str
    key: str | None

    @classmethod
    def parse(cls, url: str, key: str | None) -> "Server":
        """From http://HOST:PORT, whatever its path.

        Raises:
            InputError: it is no address.
        """
        try:
            parts = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise InputError(f"URL {url!r}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.host:
            raise InputError(f"URL {url!r}: expected http://HOST:PORT or https://…")
        return cls(url.rstrip("/").removesuffix("/v1"), key)

    @property
    def client_options(self) -> Mapping[str, Any]:
        """Of an httpx client; proxies and netrc files of the environment do not count."""
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {self.key}"} if self.key else {})
        limits = httpx2.Limits(
            max_connections=MOST_AT_ONCE, max_keepalive_connections=MOST_AT_ONCE, keepalive_expiry=_KEPT_S
        )
        timeout = httpx2.Timeout(_TIMEOUT_S, pool=None)
        return {"base_url": self.url, "headers": headers, "limits": limits, "timeout": timeout, "trust_env": False}

    def first_model(self) -> str:
        """The first model that an OpenAI server lists; "" where it lists none.

        Raises:
            BenchError: the server does not answer.
        """
        try:
            with httpx2.Client(**self.client_options) as client:
                answer = client.get("/v1/models")
        except httpx2.RequestError as error:
            raise BenchError(f"{self.url} does not answer ({type(error).__name__}); is the server running?") from error
        try:
            return str(answer.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            return ""


@dataclass(frozen=True, eq=False)
class _Exchange:
    """A request and what came of it; times in seconds from the start of the load."""

    request: LoadRequest
    due_s: float
    sent_s: float
    done_s: float
    content: bytes = b""  # of an answer
    error: str = ""  # what came instead, as it is counted; "" for answers and refusals
    retry_after: str | None = None  # the header of a refusal; None where it was none

    @property
    def wait_s(self) -> float:
        """How long a client of a closed loop waits after it; as long as the server asks, a second at most."""
        if self.retry_after is None:
            return 0.5 if self.error else 0.0
        return min(_LONGEST_WAIT_S, float(self.retry_after) if self.retry_after.isdecimal() else 0.5)


@dataclass
class _Sender:
    """A client and the clock of one load."""

    client: httpx2.AsyncClient
    requests: Iterator[LoadRequest]
    started_s: float = field(default_factory=time.perf_counter)

    @property
    def now_s(self) -> float:
        """Seconds since the load began."""
        return time.perf_counter() - self.started_s

    async def send(self, due_s: float) -> _Exchange:
        """Send the next request and wait for what comes of it."""
        request, sent_s = next(self.requests), self.now_s
        try:
            response = await self.client.post(request.api.path, content=request.body)
        except httpx2.RequestError as error:
            return _Exchange(request, due_s, sent_s, self.now_s, error=type(error).__name__)
        done_s = self.now_s
        if response.status_code in REFUSED:
            return _Exchange(request, due_s, sent_s, done_s, retry_after=response.headers.get("retry-after", ""))
        other = "" if response.status_code == HTTPStatus.OK else str(response.status_code)
        return _Exchange(request, due_s, sent_s, done_s, response.content, other)


class Loader:
    """Puts a server under load for so many seconds a stage, and watches the memory of its processes."""

    def __init__(self, server: Server, requests: Sequence[LoadRequest], seconds: float, pids: Sequence[int]) -> None:
        """Find the processes.

        Raises:
            InputError: there is none of a number.
        """
        self._server, self._seconds, self._requests = server, seconds, cycle(requests)
        try:
            self._processes = [psutil.Process(pid) for pid in pids]
        except psutil.Error as error:
            raise InputError(f"--pid: {error}") from error

    def closed(self, clients: int, seconds: float | None = None) -> Stage:
        """Clients that send when they have their answer, at least once each, for so many seconds (or the loader's)."""
        until_s = self._seconds if seconds is None else seconds

        async def client(sender: _Sender) -> list[_Exchange]:
            found: list[_Exchange] = []
            while (now_s := sender.now_s) < until_s or not found:
                found.append(await sender.send(now_s))
                await asyncio.sleep(found[-1].wait_s)
            return found

        async def load(sender: _Sender) -> list[_Exchange]:
            found = await asyncio.gather(*(client(sender) for _ in range(clients)))
            return [one for each in found for one in each]

        return asyncio.run(self._stage(load, clients, 0.0))

    def open(self, rate_per_s: float) -> Stage:
        """So many requests per second, at times drawn at random, whether or not earlier ones have been answered."""

        async def load(sender: _Sender) -> list[_Exchange]:
            drawn, calls = random.Random(7), []  # noqa: S311 - the same times each time
            due_s = drawn.expovariate(rate_per_s)
            while due_s < self._seconds:
                await asyncio.sleep(max(0.0, due_s - sender.now_s))
                calls.append(asyncio.create_task(sender.send(due_s)))
                due_s += drawn.expovariate(rate_per_s)
            return await asyncio.gather(*calls)

        return asyncio.run(self._stage(load, 0, rate_per_s))

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

    async def _stage(
        self, load: Callable[[_Sender], Awaitable[Sequence[_Exchange]]], clients: int, rate_per_s: float
    ) -> Stage:
        resident: list[int] = []
        watching = asyncio.create_task(self._watch(resident))
        async with httpx2.AsyncClient(**self._server.client_options) as client:
            sender, cpu_s = _Sender(client, self._requests), time.process_time()
            found = await load(sender)
            cores = (time.process_time() - cpu_s) / sender.now_s
        watching.cancel()
        return _stage(found, clients, rate_per_s, cores, resident)

    async def _watch(self, resident: list[int]) -> None:
        """Resident memory of the server's processes, again and again until the load is over."""
        with suppress(psutil.Error):  # one that ends takes no memory any more
            while self._processes:
                resident.append(sum(process.memory_info().rss for process in self._processes))
                await asyncio.sleep(_LOOK_EVERY_S)


def answered_per_s(stage: Stage) -> float:
    """Answered requests per second."""
    return len(stage.latencies_s) / stage.seconds


def _stage(found: Sequence[_Exchange], clients: int, rate_per_s: float, cores: float, resident: Sequence[int]) -> Stage:
    if not found:
        raise BenchError("not one request was sent; give more --seconds or a higher --rate")
    answers: list[tuple[_Exchange, Answered]] = []
    errors = Counter(one.error for one in found if one.error)
    for one in found:
        if one.retry_after is None and not one.error:
            try:
                answers.append((one, one.request.api.read(one.content, len(one.request.texts))))
            except Exception:  # whatever a foreign answer may be to JSON and numpy
                errors[f"answer that is none of {one.request.api.path}"] += 1
    refused = [one for one in found if one.retry_after is not None]
    cosines = [cosine for one, answer in answers if (cosine := one.request.cosine_min(answer)) is not None]
    return Stage(
        clients=clients,
        rate_per_s=rate_per_s,
        seconds=max(one.done_s for one in found),
        latencies_s=tuple(round(one.done_s - one.due_s, 6) for one, _ in answers),
        refusals_s=tuple(round(one.done_s - one.due_s, 6) for one in refused),
        retry_after=tuple(sorted({one.retry_after or "" for one in refused})),
        errors=errors,
        texts=sum(len(one.request.texts) for one, _ in answers),
        tokens=sum(answer.tokens for _, answer in answers),
        late_s=float(np.percentile([one.sent_s - one.due_s for one in found], 99)),
        client_cores=cores,
        resident_bytes=tuple(resident),
        cosine_min=min(cosines, default=None),
    )
