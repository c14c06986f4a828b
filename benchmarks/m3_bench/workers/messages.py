"""What parent and worker say to each other: frozen values, one JSON line each."""

import json
from dataclasses import asdict, dataclass
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
        dense: dense vector of the first text, to see that contenders compute the same; empty without one.
        tokenise_s: of each batch, the time spent tokenising; empty where the contender does not tell.
        engine_s: of each batch, the time spent in the engine; empty likewise.
        wall_s: of all batches together.
        cpu_s: processor seconds of all threads for them.
    """

    seconds: tuple[float, ...]
    work: tuple[float, ...]
    resident_bytes: int
    peak_bytes: int
    dense: tuple[float, ...]
    tokenise_s: tuple[float, ...] = ()
    engine_s: tuple[float, ...] = ()
    wall_s: float = 0.0
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Keep:
    """Encode these texts for these heads and write the vectors to a file; see `vectors`."""

    texts: tuple[str, ...]
    heads: tuple[str, ...]
    path: str


@dataclass(frozen=True)
class Kept:
    """The vectors are written, for these heads."""

    heads: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """The worker could not do it."""

    message: str


Message = Ready | Request | Reply | Keep | Kept | Failure
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Ready, Request, Reply, Keep, Kept, Failure)}


def to_line(message: Message) -> str:
    r"""A message as one line.

    >>> to_line(Failure("out of memory"))
    '{"kind": "Failure", "message": "out of memory"}\n'
    """
    return json.dumps({"kind": type(message).__name__, **asdict(message)}) + "\n"


def from_line(line: str) -> Any:
    """The message of a line.

    Raises:
        ValueError: the line is no message.

    >>> from_line(to_line(Request((("a b",),), ("dense",))))
    Request(batches=(('a b',),), heads=('dense',), clients=1)
    """
    data = json.loads(line)
    if not isinstance(data, dict) or data.get("kind") not in _KINDS:
        raise ValueError(f"not a message: {line[:200]!r}")
    kind = _KINDS[data.pop("kind")]
    if data.keys() != kind.__dataclass_fields__.keys():
        raise ValueError(f"a {kind.__name__} has {sorted(kind.__dataclass_fields__)}, got {sorted(data)}")
    return kind(**{name: _frozen(value) for name, value in data.items()})


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples, as the values have them."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
