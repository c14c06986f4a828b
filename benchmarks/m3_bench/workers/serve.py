"""The protocol between parent and worker, and the worker's side of it: a loop that answers one request after the other.

Messages are frozen values, pickled, as between any two processes of one program. Needs the standard library, and numpy
for vectors: peers' environments have no more.
"""

import json
import os
import pickle
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Request:
    """Run these batches of texts for these heads ("dense", "sparse", "colbert"), `clients` at a time."""

    batches: tuple[tuple[str, ...], ...]
    heads: tuple[str, ...]
    clients: int = 1


@dataclass(frozen=True)
class VectorsRequest:
    """Encode these texts for these heads; not timed. The answer is what `vectors.to_arrays` gives."""

    texts: tuple[str, ...]
    heads: tuple[str, ...]


@dataclass(frozen=True)
class Reply:
    """What was done for a `Request`, per batch, and what it cost; more about the fields in `documents.Round`.

    `work` is tokens, both special tokens of a text counted; FLOP or bytes where a contender encodes nothing.
    """

    work: tuple[float, ...]
    seconds: tuple[float, ...]
    wall_s: float
    cpu_s: float
    resident_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Failure:
    """The worker could not do it."""

    message: str


class Encoder(ABC):
    """What a worker's program brings along.

    `packages` are the distributions that compute, whose releases are kept with the results.
    """

    packages: tuple[str, ...] = ()

    @abstractmethod
    def run(self, texts: Sequence[str], heads: Sequence[str]) -> Any:
        """The work that is timed."""

    @abstractmethod
    def work(self, result: Any) -> float:
        """How much work a result was, in tokens; not timed."""

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Any:
        """A `vectors.Vectors` with those of the heads that it has, by the public call; not timed."""
        raise NotImplementedError(f"{type(self).__name__} gives no vectors")

    def memory(self) -> tuple[int, int]:
        """Bytes that it holds: now, and at the highest."""
        return resident_memory()


def serve(open_encoder: Callable[..., Encoder]) -> None:
    """Load, send the releases of the packages, then answer requests until stdin ends.

    Between requests the process waits for its pipe. An error becomes a `Failure`, and the loop goes on. The
    command line's options go to `open_encoder`.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print, in C too, goes to stderr from now on

    def send(message: Any) -> None:
        pickle.dump(message, answers)
        answers.flush()

    try:
        encoder = open_encoder(**json.loads(sys.argv[1]))
        send({name: metadata.version(name) for name in encoder.packages})
    except Exception as error:  # whatever a library raises, the parent shall read it
        send(_failure(error))
        return
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
        except EOFError:
            return
        try:
            send(_timed(encoder, request) if isinstance(request, Request) else _vectors(encoder, request))
        except Exception as error:
            send(_failure(error))


def _failure(error: Exception) -> Failure:
    return Failure(f"{type(error).__name__}: {error}")


def _vectors(encoder: Encoder, request: VectorsRequest) -> Mapping[str, Any]:
    from m3_bench.workers.vectors import to_arrays

    return to_arrays(encoder.vectors(request.texts, request.heads))


def _timed(encoder: Encoder, request: Request) -> Reply:
    """Run all batches; with several clients each takes the next batch."""

    def call(texts: Sequence[str]) -> tuple[float, float]:
        started_s = time.perf_counter()
        result = encoder.run(texts, request.heads)
        seconds = time.perf_counter() - started_s
        # the result goes with this frame, or it would be on top of the next one's
        return encoder.work(result), seconds

    cpu_s, wall_s = time.process_time(), time.perf_counter()
    if request.clients == 1:
        calls = [call(texts) for texts in request.batches]
    else:
        with ThreadPoolExecutor(request.clients) as clients:
            calls = list(clients.map(call, request.batches))
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    resident_bytes, peak_bytes = encoder.memory()
    return Reply(
        work=tuple(work for work, _ in calls),
        seconds=tuple(seconds for _, seconds in calls),
        wall_s=wall_s,
        cpu_s=cpu_s,
        resident_bytes=resident_bytes,
        peak_bytes=peak_bytes,
    )


def resident_memory() -> tuple[int, int]:
    """Resident memory of this process in bytes: now, and at its highest. (0, peak) where there is no /proc.

    psutil has no peak on Linux and the peers' environments have no psutil; getrusage's peak on Linux includes what the
    parent had when it started the process.
    """
    if _STATUS.is_file():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 0, peak if sys.platform == "darwin" else peak * 1024
