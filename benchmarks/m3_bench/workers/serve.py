"""A worker's main loop. Needs the standard library, and numpy to keep vectors: peers' environments have no more."""

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from m3_bench.workers.messages import Failure, Keep, Kept, Ready, Reply, Request, from_line, to_line

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
    def inspect(self, result: Any) -> tuple[float, Sequence[float]]:
        """How much work a result was (tokens), and the dense vector of its first text; not timed."""

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
    dense: Sequence[float]
    parts: tuple[float, float] | None


def serve(open_encoder: Callable[..., Encoder]) -> None:
    """Load, say `Ready`, then answer one `Request` or `Keep` after the other until stdin ends.

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
    for line in sys.stdin:
        try:
            message = from_line(line)
            reply: Reply | Kept | Failure
            reply = _keep(encoder, message) if isinstance(message, Keep) else _answer(encoder, message)
        except Exception as error:
            reply = _failure(error)
        _send(answers, reply)


def _reserve_stdout() -> TextIO:
    """The pipe to the parent, ours alone: what libraries print, in C too, goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _send(answers: TextIO, message: Ready | Reply | Kept | Failure) -> None:
    answers.write(to_line(message))
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
        dense=tuple(map(float, calls[0].dense)) if calls else (),
        tokenise_s=tuple(tokenize_s for tokenize_s, _ in parts),
        engine_s=tuple(engine_s for _, engine_s in parts),
        wall_s=wall_s,
        cpu_s=cpu_s,
    )


def _timed(encoder: Encoder, texts: Sequence[str], heads: Sequence[str], *, is_alone: bool) -> _Call:
    started_s = time.perf_counter()
    result = encoder.run(texts, heads)
    seconds = time.perf_counter() - started_s
    work, dense = encoder.inspect(result)  # the result goes with this frame, or it would be on top of the next one's
    return _Call(seconds, work, dense, encoder.parts() if is_alone else None)


def _keep(encoder: Encoder, keep: Keep) -> Kept:
    from m3_bench.workers.vectors import write_vectors

    vectors = encoder.vectors(keep.texts, keep.heads)
    write_vectors(vectors, Path(keep.path))
    return Kept(vectors.heads)


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
