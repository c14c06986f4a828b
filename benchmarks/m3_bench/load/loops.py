"""Closed loops, open loops, and the search for what a server can do."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import chain
from statistics import median

import numpy as np

from m3_bench.documents import Direct, Stage
from m3_bench.errors import BenchError
from m3_bench.load.connections import Connections, Response
from m3_bench.load.requests import LoadRequest
from m3_runtime import M3Encoder

MOST_CLIENTS = 64
SATURATED = 1.05  # a server is saturated where twice the clients get less than so much more answered
REFUSED = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
SHARES = (50, 90, 99)  # percentiles of latencies
_LOOK_EVERY_S = 0.25
_AT_ONCE = 8  # requests whose texts the encoder gets in one call
_LONGEST_WAIT_S = 1.0


@dataclass(frozen=True, eq=False)
class _Exchange:
    """A request and what came of it; times in seconds from the start of the load."""

    request: LoadRequest
    due_s: float
    sent_s: float
    done_s: float
    response: Response


@dataclass
class Loader:
    """Puts a server under load.

    Attributes:
        connections: to the server.
        requests: sent again and again.
        seconds: of each stage.
        pids: the server's processes, whose memory is watched; none if empty.
    """

    connections: Connections
    requests: Sequence[LoadRequest]
    seconds: float
    pids: Sequence[int] = ()
    _sent: int = field(default=0, init=False)

    async def closed(self, clients: int, seconds: float | None = None) -> Stage:
        """Clients that send when they have their answer; who is refused waits as long as it is told, a second at most.

        Args:
            clients: how many.
            seconds: how long they send; those of the loader by default.
        """
        start_s, until_s = time.perf_counter(), seconds or self.seconds

        async def client() -> list[_Exchange]:
            found = []
            while (now_s := time.perf_counter() - start_s) < until_s:
                found.append(await self._exchange(now_s, start_s))
                if found[-1].response.status != HTTPStatus.OK:
                    await asyncio.sleep(_wait_s(found[-1].response))
            return found

        async with self._watched() as resident:
            cpu_s = time.process_time()
            found = await asyncio.gather(*(client() for _ in range(clients)))
            cores = (time.process_time() - cpu_s) / (time.perf_counter() - start_s)
        return _stage([one for each in found for one in each], clients, 0.0, cores, resident)

    async def open(self, rate_per_s: float) -> Stage:
        """So many requests per second, at times drawn at random, whether or not earlier ones have been answered."""
        drawn = random.Random(7)  # noqa: S311 - the same times each time
        due_s, tasks = 0.0, []
        async with self._watched() as resident:
            start_s, cpu_s = time.perf_counter(), time.process_time()
            while (due_s := due_s + drawn.expovariate(rate_per_s)) < self.seconds:
                await asyncio.sleep(due_s - (time.perf_counter() - start_s))
                tasks.append(asyncio.create_task(self._exchange(due_s, start_s)))
            found = list(await asyncio.gather(*tasks))
            cores = (time.process_time() - cpu_s) / (time.perf_counter() - start_s)
        return _stage(found, 0, rate_per_s, cores, resident)

    async def sweep(self) -> list[Stage]:
        """Closed loops of one, two, four clients and so on, until twice as many get hardly more answered."""
        stages = [await self.closed(1)]
        while stages[-1].clients < MOST_CLIENTS:
            stages.append(await self.closed(2 * stages[-1].clients))
            before, now = (answered_per_s(stage) for stage in stages[-2:])
            if now < SATURATED * before or stages[-1].refusals_s:
                break
        return stages

    async def _exchange(self, due_s: float, start_s: float) -> _Exchange:
        request = self.requests[self._sent % len(self.requests)]
        self._sent += 1
        sent_s = time.perf_counter() - start_s
        response = await self.connections.send(request.sent)
        return _Exchange(request, due_s, sent_s, time.perf_counter() - start_s, response)

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[list[int]]:
        """Look at the memory of the server's processes meanwhile."""
        resident: list[int] = []

        async def look() -> None:
            import psutil

            while True:
                resident.append(sum(psutil.Process(pid).memory_info().rss for pid in self.pids))
                await asyncio.sleep(_LOOK_EVERY_S)

        looking = asyncio.create_task(look()) if self.pids else None
        try:
            yield resident
        finally:
            if looking is not None:
                looking.cancel()


def answered_per_s(stage: Stage) -> float:
    """Answered requests per second."""
    return len(stage.latencies_s) / stage.seconds


def direct(encoder: M3Encoder, requests: Sequence[LoadRequest], seconds: float) -> Direct:
    """The encoder alone, half of the time with the texts of many requests in a call, half with one request's."""

    def calls(groups: Sequence[list[str]]) -> tuple[int, list[float]]:
        tokens, took_s = 0, [0.0]
        while sum(took_s) < seconds / 2:
            texts = groups[(len(took_s) - 1) % len(groups)]
            start_s = time.perf_counter()
            tokens += int(encoder.encode(texts, max_length=encoder.max_tokens).token_counts.sum())
            took_s.append(time.perf_counter() - start_s)
        return tokens, took_s[1:]

    single = [list(request.texts) for request in requests]
    many = [list(chain(*single[at : at + _AT_ONCE])) for at in range(0, len(single), _AT_ONCE)]
    tokens, took_s = calls(many)
    return Direct(tokens / sum(took_s), tuple(calls(single)[1]))


def in_words(stage: Stage) -> str:
    """A stage in a line or two; refusals and errors beside latencies, never in them."""
    asked = f"{stage.clients} clients" if stage.clients else f"{stage.rate_per_s:.1f} requests/s offered"
    counts = [f"{len(stage.latencies_s)} answered", f"{len(stage.refusals_s)} refused"]
    counts += [f"{count} × {error}" for error, count in stage.errors.items()]
    lines = [f"{asked}: {', '.join(counts)} in {stage.seconds:.1f} s"]
    if stage.latencies_s:
        rates = [f"{answered_per_s(stage):.1f} requests/s, {stage.texts / stage.seconds:.1f} texts/s"]
        rates += [f"{stage.tokens / stage.seconds:.0f} tokens/s"] if stage.tokens else []
        lines.append(f"  {', '.join(rates)}; latency {percentiles(stage.latencies_s)}")
    if stage.refusals_s:
        lines.append(f"  refused after {percentiles(stage.refusals_s)}; Retry-After {', '.join(stage.retry_after)}")
    if stage.rate_per_s:
        lines.append(
            f"  99 % sent within {stage.late_s * 1e3:.1f} ms of their time; {stage.client_cores:.2f} client cores"
        )
    if stage.resident_bytes:
        first, most = (number / 2**20 for number in (stage.resident_bytes[0], max(stage.resident_bytes)))
        lines.append(f"  resident {first:.0f} MiB before, {most:.0f} at most")
    if stage.cosine_min is not None:
        lines.append(f"  lowest cosine to the encoder's vectors: {stage.cosine_min:.8f}")
    return "\n".join(lines)


def percentiles(seconds: Sequence[float]) -> str:
    """Median, 90th and 99th percentile, and the longest."""
    found = [f"p{p} {value * 1e3:.1f}" for p, value in zip(SHARES, np.percentile(seconds, SHARES), strict=True)]
    return f"{', '.join(found)}, most {max(seconds) * 1e3:.1f} ms"


def beside(stage: Stage, alone: Sequence[Direct]) -> str:
    """A server's throughput as a part of the encoder's own, and what it adds to a request's time."""
    rate, p50_s = stage.tokens / stage.seconds, median(stage.latencies_s)
    return "\n".join(
        f"encoder alone {when}: {one.tokens_per_s:.0f} tokens/s, of which the server reaches "
        f"{rate / one.tokens_per_s:.2f}; p50 {median(one.latencies_s) * 1e3:.1f} ms, the server "
        f"{(p50_s - median(one.latencies_s)) * 1e3:+.1f} ms"
        for when, one in zip(("before", "after"), alone, strict=False)
    )


def _wait_s(response: Response) -> float:
    told = response.headers.get("retry-after", "")
    return min(_LONGEST_WAIT_S, float(told) if told.isdecimal() else 0.5)


def _stage(found: Sequence[_Exchange], clients: int, rate_per_s: float, cores: float, resident: Sequence[int]) -> Stage:
    if not found:
        raise BenchError("not one request was sent; give more --seconds or a higher --rate")
    good = [one for one in found if one.response.status == HTTPStatus.OK]
    refused = [one for one in found if one.response.status in REFUSED]
    answered = [(one, one.request.api.read(one.response.content, len(one.request.texts))) for one in good]
    cosines = [one.request.cosine_min(answer) for one, answer in answered if one.request.expected is not None]
    return Stage(
        clients=clients,
        rate_per_s=rate_per_s,
        seconds=max(one.done_s for one in found),
        latencies_s=tuple(round(one.done_s - one.due_s, 6) for one in good),
        refusals_s=tuple(round(one.done_s - one.due_s, 6) for one in refused),
        retry_after=tuple(sorted({one.response.headers.get("retry-after", "") for one in refused})),
        errors=Counter(
            str(one.response.status or one.response.content.decode())
            for one in found
            if one.response.status not in (HTTPStatus.OK, *REFUSED)
        ),
        texts=sum(len(one.request.texts) for one in good),
        tokens=sum(answer.tokens for _, answer in answered),
        late_s=float(np.percentile([one.sent_s - one.due_s for one in found], 99)),
        client_cores=cores,
        resident_bytes=tuple(resident),
        cosine_min=min(cosines, default=None),
    )
