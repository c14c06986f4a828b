"""A server under changing load for long: does it hold more and more, and is every answer right?

A cycle has phases: clients in a closed loop, one client alone, connections that end in the middle, more requests than
can be answered, and what was dropped once more. What the server holds is noted when a cycle is over and no request is
under way, so only what is kept from cycle to cycle counts.
"""

import json
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from queue import Queue
from typing import IO
from urllib.parse import urlsplit

import psutil

from m3_bench.cycles import Cycle, wait_until_quiet
from m3_bench.documents import Soak, Stage
from m3_bench.errors import BenchError
from m3_bench.load import APIS, SAME, WORDS, Loader, LoadRequest, Server, answered_per_s, made_requests
from m3_bench.machine import this_machine
from m3_bench.run.contenders import model_of
from m3_bench.stats import FEWEST_CYCLES
from m3_runtime import M3Encoder
from m3_runtime.cli.interrupt import interruptible

SHAPES = ((1, 6), (4, 40), (2, 150), (6, 120))  # texts of a request and words of a text, on average
OVERLOAD = 4.0  # requests offered ÷ requests that were answered
BESIDE_ENGINE = ("numpy", "tokenizers", "uvicorn", "fastapi")
_QUEUE_OPTIONS = ("--max-queue-tokens", "8192")  # seconds of overload are refused, not queued
_LONGEST = 2.0  # a text has half as many words again, and may have long ones
_DROPS = 12  # connections of a cycle
_ALONE, _LOOK = 0.4, 0.125  # one client alone, and the time between two looks, as parts of `phase_s`
_END_S, _LAST_LINES = 60.0, 20
_RESET = struct.pack("ii", 1, 0)  # close without waiting for anything: the peer's next write fails


@dataclass(frozen=True)
class SoakPlan:
    """What to serve and for how long at least; `phase_s` is of the two phases that keep the server busy."""

    bundle: Path
    variant: str
    threads: int
    clients: int
    seconds: float
    warmup_s: float
    phase_s: float


def soak(plan: SoakPlan) -> Iterator[Soak]:
    """Start a server and put it under load; yields what was measured until now after every cycle.

    Raises:
        M3Error: the bundle cannot be opened, or the server ends.
    """
    opening = partial(M3Encoder.open, plan.bundle, variant=plan.variant, threads=plan.threads)
    with interruptible(opening) as encoder:
        variant, model = encoder.variant.name, model_of(encoder.bundle.manifest)
        versions = {name: metadata.version(name) for name in (encoder.variant.engine, *BESIDE_ENGINE)}
        options = ("--variant", variant, "--threads", str(plan.threads), *_QUEUE_OPTIONS)
        with _served(plan.bundle, options) as (server, process):
            requests = _requests(encoder, server.first_model())
            cycles: list[Cycle] = []
            for one in _cycles(plan, server, process, requests):
                cycles.append(one)
                facts = (this_machine(), model, variant, versions, options, plan.clients, plan.warmup_s)
                yield Soak(*facts, tuple(cycles))


def _requests(encoder: M3Encoder, model: str) -> list[LoadRequest]:
    """Of all shapes and APIs, in a mixed order; no text is longer than the model takes."""
    tokens = int(encoder.tokenizer.encode_batch([" ".join(WORDS)], 8192).lengths[0]) / len(WORDS)
    most_words = int(encoder.max_tokens / tokens / _LONGEST)
    made = [
        one
        for texts, words in SHAPES
        for one in made_requests(tuple(APIS), model, texts, min(words, most_words), encoder)
    ]
    random.Random(0).shuffle(made)  # noqa: S311 - the same order each time
    return made


def _cycles(
    plan: SoakPlan, server: Server, process: psutil.Process, requests: Sequence[LoadRequest]
) -> Iterator[Cycle]:
    dropped = requests[:_DROPS]
    loader, again = (Loader(server, some, plan.phase_s, [process.pid]) for some in (requests, dropped))
    start_s, counted = time.monotonic(), 0
    while (now_s := time.monotonic() - start_s) < plan.seconds or counted < FEWEST_CYCLES:
        counted += now_s >= plan.warmup_s
        stages = [loader.closed(plan.clients), loader.closed(1, _ALONE * plan.phase_s)]
        for number, request in enumerate(dropped):
            _drop(server, request, number)
        stages.append(loader.open(OVERLOAD * max(1.0, answered_per_s(stages[0]))))
        stages.append(again.closed(_DROPS, 0.0))  # takes what the server has kept of the dropped ones
        wait_until_quiet(process, _LOOK * plan.phase_s)
        yield _noted(stages, process, time.monotonic() - start_s)


def _noted(stages: Sequence[Stage], process: psutil.Process, seconds: float) -> Cycle:
    try:
        with process.oneshot():
            resident, descriptors, threads = process.memory_info().rss, process.num_fds(), process.num_threads()
    except psutil.Error as error:
        raise BenchError(f"the server has ended after {seconds:.0f} s ({error})") from error
    errors: Counter[str] = Counter()
    for stage in stages:
        errors.update(stage.errors)
    return Cycle(
        seconds=round(seconds, 1),
        resident_bytes=resident,
        descriptors=descriptors,
        threads=threads,
        peak_bytes=max(held for stage in stages for held in (*stage.resident_bytes, resident)),
        answered=sum(len(stage.latencies_s) for stage in stages),
        wrong=sum(stage.cosine_min is not None and stage.cosine_min < SAME for stage in stages),
        refused=sum(len(stage.refusals_s) for stage in stages),
        dropped=_DROPS,
        errors=errors,
    )


def _drop(server: Server, request: LoadRequest, number: int) -> None:
    """Send a request and end the connection in the middle: of its head, its body, the work, or the answer."""
    where = urlsplit(server.url)
    head = f"POST {request.api.path} HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\n"
    whole = f"{head}content-length: {len(request.body)}\r\n\r\n".encode() + request.body
    sent = (len(head) // 2, len(whole) - len(request.body) // 2, len(whole), len(whole))[number % 4]
    with suppress(OSError), socket.create_connection((where.hostname, where.port), timeout=_END_S) as connection:
        connection.sendall(whole[:sent])
        if number % 4 == 3:
            connection.recv(64)
        if number % 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


@contextmanager
def _served(bundle: Path, options: Sequence[str]) -> Iterator[tuple[Server, psutil.Process]]:
    """A server in a process of its own, until the block ends."""
    command = [sys.executable, "-m", "m3_runtime", "serve", str(bundle), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:  # noqa: S603 - our own program
        assert started.stderr is not None
        messages: Queue[str] = Queue()
        threading.Thread(target=_read_log, args=(started.stderr, messages), daemon=True).start()
        try:
            if not (url := messages.get()).startswith("http"):
                raise BenchError(f"the server did not start: {url}")
            yield Server.parse(url, None), psutil.Process(started.pid)
        except KeyboardInterrupt:
            started.kill()  # it would finish what was asked of it
            raise
        finally:
            started.terminate()
            with suppress(subprocess.TimeoutExpired):
                started.wait(_END_S)
            started.kill()


def _read_log(log: IO[str], messages: Queue[str]) -> None:
    """Read until the server ends, so that its pipe never fills up; send its address, or its last lines without one."""
    last: deque[str] = deque(maxlen=_LAST_LINES)
    for line in log:
        last.append(line)
        if '"serving"' in line:
            messages.put(json.loads(line)["url"])
    messages.put("".join(last))
