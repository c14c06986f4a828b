"""A cycle of a soak, as a value, and the wait for its end."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

_LOOKS, _MOST_LOOKS, _STILL_BYTES = 6, 40, 200_000  # an idle server gives memory back after a second


@dataclass(frozen=True)
class Cycle:
    """Once through all phases of a soak: what happened, and what the server's process held when it was over."""

    seconds: float  # since the server was ready
    resident_bytes: int  # with no request under way, as the next two
    descriptors: int
    threads: int
    peak_bytes: int  # resident under load, the most of four looks a second
    answered: int  # requests whose vectors were compared with the encoder's
    wrong: int  # phases with another vector than the encoder's in an answer
    refused: int  # 429 or 503
    dropped: int  # connections that the client ended in the middle of a request or of its answer
    errors: Mapping[str, int]  # how often anything else came, by status or by how the connection broke


def wait_until_quiet(process: psutil.Process, look_s: float) -> None:
    """Wait until what is resident has stayed the same for some looks; on a busy machine an idle server is slow too."""
    seen: list[int] = []
    with suppress(psutil.Error):
        while len(seen) < _MOST_LOOKS:
            time.sleep(look_s)
            seen.append(process.memory_info().rss)
            last = seen[-_LOOKS:]
            if len(seen) > _LOOKS and max(last) - min(last) < _STILL_BYTES:
                return
