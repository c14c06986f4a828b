"""A running server under more load than it can bear: what it answers, what it refuses, and what it holds meanwhile.

    m3-runtime serve out/mini-m3 --threads 1 --max-queue-tokens 16384 &
    python benchmarks/overload.py http://localhost:8080 --bundle out/mini-m3 --pid $! --times 5 --seconds 60

First the server's capacity is measured, with clients that never pause and keep its queue filled. Then requests are sent
at times drawn for so many times that capacity, whether or not the earlier ones have been answered (an open loop), and
everything that comes back is looked at: the status, Retry-After, and each vector beside that of the encoder in this
process, which works it out beforehand. The exit status is 1 if anything but 200 and 429 came, a 429 did not say when to
come again, or a vector was wrong. Of every four requests three ask for dense vectors as base64, and one for all heads
as npz.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from load import made_texts
from m3_runtime import Encoding, M3Encoder

POOL = 61  # different requests, again and again; a prime, so that they meet in ever new company
SAME = 0.99999  # lowest cosine between a text alone and in any batch
MOST_CLIENTS = 64
LOOK_EVERY_S = 0.25
PAGE_BYTES, MIB = 4096, 2**20


@dataclass(frozen=True, eq=False)
class Ask:
    """A request as it is sent, and what its texts must give."""

    sent: bytes
    expected: Encoding
    is_dense: bool

    @property
    def tokens(self) -> int:
        """Tokens of all its texts."""
        return int(self.expected.token_counts.sum())


@dataclass(frozen=True, eq=False)
class Answer:
    """What came back; times in seconds from the start of the load. Status 0: the connection broke."""

    ask: Ask
    due_s: float
    sent_s: float
    done_s: float
    status: int
    headers: dict[str, str]
    content: bytes


@dataclass
class Held:
    """The server's resident memory over time."""

    times_s: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)

    def most_by_quarter(self) -> list[float]:
        """The most in each quarter of the time."""
        return [float(max(part)) for part in np.array_split(np.array(self.mib), 4)]


class Lines:
    """Connections that are kept, as many as there are requests under way.

    Not httpx2's: with it the client takes 0.48 of a core instead of 0.10 for 250 requests per second, and on the
    server's own cores it then offers four times the capacity where it should offer five.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.scheme == "http" and parts.hostname, f"expected http://HOST:PORT, got {url!r}"
        self._at = parts.hostname, parts.port or 80
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.most = self._open = 0

    async def ask(self, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer; status 0 where there was none."""
        try:
            reader, writer = self._kept() or await self._opened()
        except OSError as error:
            return 0, {}, repr(error).encode()
        is_kept = False
        try:
            writer.write(sent)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in head[1:])}
            content = await reader.readexactly(int(headers["content-length"]))
            is_kept = headers.get("connection") != "close"
        except (OSError, asyncio.IncompleteReadError) as error:
            return 0, {}, repr(error).encode()
        finally:
            if is_kept:
                self._idle.append((reader, writer))
            else:
                self._closed(writer)
        return int(head[0].split()[1]), headers, content

    def _closed(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        self._open -= 1

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # servers close what has been idle for long
                return reader, writer
            self._closed(writer)
        return None

    async def _opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        opened = await asyncio.open_connection(*self._at)
        self._open += 1
        self.most = max(self.most, self._open)
        return opened

    def close(self) -> None:
        """Close what is idle."""
        for _, writer in self._idle:
            writer.close()


def made_asks(encoder: M3Encoder, asked: argparse.Namespace) -> list[Ask]:
    """The requests, and their answers by the encoder alone."""
    asks = []
    for number in range(POOL):
        count = random.Random(number).randint(1, 2 * asked.texts - 1)  # noqa: S311 - the same each time
        texts, is_dense = made_texts(number, count, asked.words), number % 4 != 0
        expected = encoder.encode(texts, max_length=encoder.max_tokens, return_sparse=True, return_colbert_vecs=True)
        asks.append(Ask(_as_sent(texts, is_dense, asked), expected, is_dense))
    return asks


def _as_sent(texts: list[str], is_dense: bool, asked: argparse.Namespace) -> bytes:
    if is_dense:
        fields: dict[str, object] = {"model": asked.model, "input": texts, "encoding_format": "base64"}
        return request("POST", "/v1/embeddings", asked.key, json.dumps(fields).encode())
    return request("POST", "/m3/encode", asked.key, json.dumps({"texts": texts, "format": "npz"}).encode())


def request(method: str, path: str, key: str | None, body: bytes = b"") -> bytes:
    """A request as it goes over the wire."""
    head = [f"{method} {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(body)}"]
    if key is not None:
        head.append(f"authorization: Bearer {key}")
    return "\r\n".join([*head, "", ""]).encode() + body


async def capacity_tokens_per_s(lines: Lines, asks: Sequence[Ask], asked: argparse.Namespace) -> float:
    """Tokens per second, by the server's own count, while clients that never pause keep its queue filled."""
    room = json.loads((await lines.ask(request("GET", "/info", asked.key)))[2])["max_queue_tokens"]
    size = sum(ask.tokens for ask in asks) / len(asks)
    tasks = [
        asyncio.create_task(_client(lines, itertools.cycle([*asks[number:], *asks[:number]])))
        for number in range(max(2, min(MOST_CLIENTS, int(0.75 * room / size))))
    ]
    await asyncio.sleep(asked.capacity_seconds / 2)  # it warms up, and the queue fills
    before, start_s = await _tokens_run(lines, asked), time.perf_counter()
    await asyncio.sleep(asked.capacity_seconds)
    ran, took_s = await _tokens_run(lines, asked) - before, time.perf_counter() - start_s
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return ran / took_s


async def _client(lines: Lines, asks: Iterator[Ask]) -> None:
    for ask in asks:
        status, _, _ = await lines.ask(ask.sent)
        if status != HTTPStatus.OK:
            await asyncio.sleep(0.5)


async def _tokens_run(lines: Lines, asked: argparse.Namespace) -> float:
    page = (await lines.ask(request("GET", "/metrics", asked.key)))[2].decode()
    return next(float(row.split()[1]) for row in page.splitlines() if row.startswith("m3_tokens_total"))


async def offered(lines: Lines, asks: Sequence[Ask], per_s: float, seconds: float) -> list[Answer]:
    """Send so many requests per second, at times drawn at random, and wait for all answers."""
    drawn = random.Random(7)  # noqa: S311 - the same times each time
    calls, due_s = [], 0.0
    start_s = time.perf_counter()

    async def call(ask: Ask, due_s: float) -> Answer:
        sent_s = time.perf_counter() - start_s
        status, headers, content = await lines.ask(ask.sent)
        return Answer(ask, due_s, sent_s, time.perf_counter() - start_s, status, headers, content)

    while (due_s := due_s + drawn.expovariate(per_s)) < seconds:
        await asyncio.sleep(due_s - (time.perf_counter() - start_s))
        calls.append(asyncio.create_task(call(asks[len(calls) % len(asks)], due_s)))
    return list(await asyncio.gather(*calls))


@asynccontextmanager
async def watched(pids: Sequence[int]) -> AsyncIterator[Held]:
    """Look at the memory of processes meanwhile; of none where none are named."""
    held, start_s = Held(), time.perf_counter()

    async def look() -> None:
        while pids:
            pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
            held.times_s.append(time.perf_counter() - start_s)
            held.mib.append(pages * PAGE_BYTES / MIB)
            await asyncio.sleep(LOOK_EVERY_S)

    looking = asyncio.create_task(look())
    try:
        yield held
    finally:
        looking.cancel()


def cosine_of(answer: Answer) -> float:
    """The lowest cosine of an answer's vectors, all heads that it has, to the encoder's."""
    expected = answer.ask.expected
    if answer.ask.is_dense:
        items = sorted(json.loads(answer.content)["data"], key=lambda item: int(item["index"]))
        dense = np.stack([np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in items])
        return _lowest(dense, expected.dense_vecs)
    found = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert np.array_equal(found["sparse_ids"], expected.sparse.ids)
    return min(
        _lowest(found["dense_vecs"], expected.dense_vecs),
        _lowest(found["colbert_vecs"], np.concatenate(expected.colbert_vecs)),
        _lowest(found["sparse_weights"][None], expected.sparse.weights[None]),
    )


def _lowest(found: NDArray[Any], expected: NDArray[Any]) -> float:
    assert found.shape == expected.shape, f"expected {expected.shape}, got {found.shape}"
    a, b = found.astype(np.float64), expected.astype(np.float64)
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


@dataclass(frozen=True)
class Load:
    """What was found out; `per_s` and `tokens_per_s` are what was offered."""

    capacity_tokens_per_s: float
    per_s: float
    tokens_per_s: float
    answers: list[Answer]
    took_s: float
    busy: float
    held: Held
    most_lines: int


async def loaded(asks: Sequence[Ask], asked: argparse.Namespace) -> Load:
    """Measure the capacity, then offer many times that."""
    lines = Lines(asked.url)
    capacity = await capacity_tokens_per_s(lines, asks, asked)
    per_s = asked.times * capacity / (sum(ask.tokens for ask in asks) / len(asks))
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    async with watched(asked.pid) as held:
        answers = await offered(lines, asks, per_s, asked.seconds)
    took_s, used_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    lines.close()
    sent = sum(answer.ask.tokens for answer in answers) / max(answer.sent_s for answer in answers)
    return Load(capacity, len(answers) / asked.seconds, sent, answers, took_s, used_s / took_s, held, lines.most)


def report(load: Load, asked: argparse.Namespace) -> bool:
    """Print what was measured; whether all of it was as it must be."""
    good = [answer for answer in load.answers if answer.status == HTTPStatus.OK]
    busy = [answer for answer in load.answers if answer.status == HTTPStatus.TOO_MANY_REQUESTS]
    statuses = ", ".join(f"{n} × {status}" for status, n in sorted(Counter(a.status for a in load.answers).items()))
    late_s = sorted(answer.sent_s - answer.due_s for answer in load.answers)
    print(f"capacity: {load.capacity_tokens_per_s:.0f} tokens/s")
    print(
        f"offered: {load.per_s:.1f} requests/s, {load.tokens_per_s:.0f} tokens/s, "
        f"{load.tokens_per_s / load.capacity_tokens_per_s:.2f} times the capacity, for {asked.seconds:g} s; "
        f"sent late by {_ms(late_s, 0.5)}, 99% within {_ms(late_s, 0.99)}; the client took {load.busy:.2f} of a core"
    )
    print(f"answers: {statuses}; most connections at a time: {load.most_lines}")
    rate = sum(answer.ask.tokens for answer in good) / load.took_s
    print(f"answered: {rate:.0f} tokens/s, {rate / load.capacity_tokens_per_s:.2f} of the capacity; {_times(good)}")
    print(f"refused: {_times(busy)}; Retry-After {sorted({a.headers.get('retry-after', 'none') for a in busy})}")
    if mib := load.held.mib:
        quarters = ", ".join(f"{most:.0f}" for most in load.held.most_by_quarter())
        print(f"resident: {mib[0]:.0f} MiB before; most in each quarter of the time: {quarters}")
    lowest = min((cosine_of(answer) for answer in good), default=0.0)
    print(f"lowest cosine to the encoder's vectors: {lowest:.8f}")
    others = [a for a in load.answers if a.status not in (HTTPStatus.OK, HTTPStatus.TOO_MANY_REQUESTS)]
    for answer in others[:5]:
        print(answer.status, answer.content[:300])
    return not others and lowest >= SAME and all(int(a.headers.get("retry-after", "0")) >= 1 for a in busy)


def _times(answers: Sequence[Answer]) -> str:
    took_s = sorted(answer.done_s - answer.sent_s for answer in answers)
    if not took_s:
        return "none"
    return f"p50 {_ms(took_s, 0.5)}, p99 {_ms(took_s, 0.99)}, most {_ms(took_s, 1.0)}"


def _ms(sorted_s: Sequence[float], share: float) -> str:
    return f"{1000 * sorted_s[min(len(sorted_s) - 1, int(share * len(sorted_s)))]:.1f} ms"


def main() -> None:
    """Run the command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("url", metavar="URL", help="http://HOST:PORT of a server")
    arguments.add_argument("--bundle", required=True, help="the server's bundle")
    arguments.add_argument("--variant", default="auto", help="the server's variant (default: auto)")
    arguments.add_argument("--threads", type=int, help="of the encoder here (default: the cores this process may use)")
    arguments.add_argument("--pid", type=int, action="append", default=[], help="the server's process; may be repeated")
    arguments.add_argument("--times", type=float, default=5.0, help="the load, in capacities (default: %(default)s)")
    arguments.add_argument("--seconds", type=float, default=60.0, help="default: %(default)s")
    arguments.add_argument("--capacity-seconds", type=float, default=10.0, help="default: %(default)s")
    arguments.add_argument("--texts", type=int, default=8, help="texts of a request, about (default: %(default)s)")
    arguments.add_argument("--words", type=int, default=40, help="words of a text, about (default: %(default)s)")
    arguments.add_argument("--key", help="an API key")
    asked = arguments.parse_args()
    with M3Encoder.open(asked.bundle, variant=asked.variant, threads=asked.threads) as encoder:
        asked.model = encoder.space_id
        asks = made_asks(encoder, asked)
    sys.exit(0 if report(asyncio.run(loaded(asks, asked)), asked) else 1)


if __name__ == "__main__":
    main()
