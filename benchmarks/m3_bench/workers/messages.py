"""What parent and worker say to each other: frozen values, pickled, as between any two processes of one program."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ready:
    """The worker has loaded its model. `versions` are the releases of the packages that compute."""

    versions: dict[str, str]


@dataclass(frozen=True)
class Request:
    """Run these batches of texts for these heads ("dense", "sparse", "colbert"), `clients` at a time."""

    batches: tuple[tuple[str, ...], ...]
    heads: tuple[str, ...]
    clients: int = 1


@dataclass(frozen=True)
class Reply:
    """What was done, per batch, and what it cost.

    Attributes:
        seconds: of each batch.
        work: tokens of each batch, both special tokens of a text counted (of a multiplication, its FLOP).
        resident_bytes: resident memory of the worker now; 0 where the system does not say.
        peak_bytes: the most it has been since the process began.
        tokenise_s: of each batch, the time spent tokenizing; empty where the contender does not tell.
        engine_s: of each batch, the time spent in the engine; empty likewise.
        wall_s: of all batches together.
        cpu_s: processor seconds of all threads for them.
    """

    seconds: tuple[float, ...]
    work: tuple[float, ...]
    resident_bytes: int
    peak_bytes: int
    tokenise_s: tuple[float, ...]
    engine_s: tuple[float, ...]
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class VectorsRequest:
    """Encode these texts for these heads; not timed."""

    texts: tuple[str, ...]
    heads: tuple[str, ...]


@dataclass(frozen=True)
class VectorsReply:
    """The vectors, as `vectors.to_arrays` has them."""

    arrays: Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """The worker could not do it."""

    message: str


Message = Ready | Reply | VectorsReply | Failure
