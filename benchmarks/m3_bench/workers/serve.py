"""A worker's main loop. Standard library only: peers' environments have nothing of ours."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TextIO

from m3_bench.workers.messages import Failure, Ready, Reply, Request, from_line, to_line

_STATUS = Path("/proc/self/status")


class Encoder(Protocol):
    """What a worker's program brings along."""

    def run(self, texts: Sequence[str], heads: Sequence[str]) -> Any:
        """The work that is timed."""
        ...

    def inspect(self, result: Any) -> tuple[float, Sequence[float]]:
        """How much work a result was (tokens), and the dense vector of its first text; not timed."""
        ...


def serve(open_encoder: Callable[[], Encoder], packages: Sequence[str]) -> None:
    """Load, say `Ready`, then answer one `Request` after the other until stdin ends.

    Between requests the process sleeps in a read of its pipe. An error becomes a `Failure`, and the loop goes on.

    Args:
        open_encoder: loads the model.
        packages: distributions whose releases the parent wants to know.
    """
    answers = _reserve_stdout()
    try:
        encoder = open_encoder()
    except Exception as error:  # whatever a library raises, the parent shall read it
        _send(answers, _failure(error))
        return
    _send(answers, Ready({name: metadata.version(name) for name in packages}))
    for line in sys.stdin:
        try:
            reply: Reply | Failure = _answer(encoder, from_line(line))
        except Exception as error:
            reply = _failure(error)
        _send(answers, reply)


def _reserve_stdout() -> TextIO:
    """The pipe to the parent, ours alone: what libraries print, in C too, goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _send(answers: TextIO, message: Ready | Reply | Failure) -> None:
    answers.write(to_line(message))
    answers.flush()


def _failure(error: Exception) -> Failure:
    return Failure(f"{type(error).__name__}: {error}")


def _answer(encoder: Encoder, request: Request) -> Reply:
    seconds, work, dense = [], [], None
    for texts in request.batches:
        started_s = time.perf_counter()
        result = encoder.run(texts, request.heads)
        seconds.append(time.perf_counter() - started_s)
        done, vector = encoder.inspect(result)
        work.append(done)
        dense = vector if dense is None else dense
        del result  # or its memory would be on top of the next batch's
    resident_bytes, peak_bytes = resident_memory()
    return Reply(tuple(seconds), tuple(work), resident_bytes, peak_bytes, tuple(map(float, dense or ())))


def resident_memory() -> tuple[int, int]:
    """Resident memory of this process in bytes: now, and at its highest. (0, peak) where there is no /proc."""
    if _STATUS.is_file():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
        return now, peak
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 0, peak if sys.platform == "darwin" else peak * 1024
