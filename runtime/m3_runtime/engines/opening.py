"""How an engine is opened: what of memory, start and speed is traded for what."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def _nobody() -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class Opening:
    """What the caller wants of an engine besides its results, which do not depend on it.

    `low_memory`: hold less in memory and take longer for it. `cache_file`: where this variant's compiled form is kept
    from one opening to the next (OpenVINO only), or None. `streams`: how many runs at a time share the threads.
    `tell_busy` is called right before the long call into the engine, which leaves the interpreter to other threads.
    `takes_padded`: batches with padded rows will come; the runtime makes none.
    """

    low_memory: bool = False
    cache_file: Path | None = None
    tell_busy: Callable[[], None] = _nobody
    streams: int = 1
    takes_padded: bool = False


DEFAULT_OPENING = Opening()
