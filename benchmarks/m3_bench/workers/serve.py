"""A worker's main loop. Needs the standard library, and numpy to keep vectors: peers' environments have no more."""

import json
import os
import pickle
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from m3_bench.workers.messages import Failure, Message, Ready, Reply, Request, VectorsReply, VectorsRequest

_STATUS = Path("/proc/self/status")


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

    def parts(self) -> tuple[float, float] | None:
        """Seconds of the last `run` spent tokenizing, and in the engine; None if that is not known."""
        return None

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Any:
        """A `vectors.Vectors` with those of the heads that it has, by the public call; not timed."""
        raise NotImplementedError(f"{type(self).__name__} gives no vectors")

    def memory(self) -> tuple[int, int]:
        """Bytes that it holds: now, and at the highest."""
        return resident_memory()


@dataclass(frozen=True)
class _Call:
    """One call of `run`; `parts` is None where the encoder does not tell."""

    seconds: float
    work: float
    parts: tuple[float, float] | None


def serve(open_encoder: Callable[..., Encoder]) -> None:
    """Load, say `Ready`, then answer one request after the other until stdin ends.

    Between requests the process sleeps in a read of its pipe. An error becomes a `Failure`, and the loop goes on.

    Args:
        open_encoder: loads the model; called with the options of the command line.
    """
    answers = _reserve_stdout()
    try:
        encoder = open_encoder(**json.loads(sys.argv[1]))
    except Exception as error:  # whatever a library raises, the parent shall read it
        _send(answers, _failure(error))
        return
    _send(answers, Ready({name: metadata.version(name) for name in encoder.packages}))
    while True:
        try:
            message = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
        except EOFError:
            return
        try:
            _send(answers, _answer(encoder, message) if isinstance(message, Request) else _vectors(encoder, message))
        except Exception as error:
            _send(answers, _failure(error))


def _reserve_stdout() -> BinaryIO:
    """The pipe to the parent, ours alone: what libraries print, in C too, goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _send(answers: BinaryIO, message: Message) -> None:
    pickle.dump(message, answers)
    answers.flush()


def _failure(error: Exception) -> Failure:
    return Failure(f"{type(error).__name__}: {error}")


def _answer(encoder: Encoder, request: Request) -> Reply:
    """Run all batches; with several clients each takes the next batch that nobody has taken."""
    is_alone = request.clients == 1

    def call(texts: Sequence[str]) -> _Call:
        return _timed(encoder, texts, request.heads, is_alone=is_alone)

    cpu_s, wall_s = time.process_time(), time.perf_counter()
    if is_alone:
        calls = [call(texts) for texts in request.batches]
    else:
        with ThreadPoolExecutor(request.clients) as clients:
            calls = list(clients.map(call, request.batches))
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    resident_bytes, peak_bytes = encoder.memory()
    parts = [one.parts for one in calls if one.parts is not None]
    return Reply(
        seconds=tuple(one.seconds for one in calls),
        work=tuple(one.work for one in calls),
        resident_bytes=resident_bytes,
        peak_bytes=peak_bytes,
        tokenise_s=tuple(tokenize_s for tokenize_s, _ in parts),
        engine_s=tuple(engine_s for _, engine_s in parts),
        wall_s=wall_s,
        cpu_s=cpu_s,
    )


def _timed(encoder: Encoder, texts: Sequence[str], heads: Sequence[str], *, is_alone: bool) -> _Call:
    started_s = time.perf_counter()
    result = encoder.run(texts, heads)
    seconds = time.perf_counter() - started_s
    # the result goes with this frame, or it would be on top of the next one's
    return _Call(seconds, encoder.work(result), encoder.parts() if is_alone else None)


def _vectors(encoder: Encoder, request: VectorsRequest) -> VectorsReply:
    from m3_bench.workers.vectors import to_arrays

    return VectorsReply(to_arrays(encoder.vectors(request.texts, request.heads)))


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
