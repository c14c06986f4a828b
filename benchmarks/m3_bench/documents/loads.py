"""What a server did under load."""

from collections.abc import Mapping
from dataclasses import dataclass

from m3_bench.documents.kinds import SCHEMA_VERSION, Kind
from m3_bench.machine import Machine


@dataclass(frozen=True)
class Stage:
    """One load on a server. Only answers with vectors have latencies; refusals and errors are kept apart.

    Attributes:
        clients: of a closed loop, each of which sends when it has its answer; 0 in an open loop.
        rate_per_s: requests that an open loop sends, whether or not earlier ones are answered; 0 in a closed one.
        seconds: from the first request to the last answer.
        latencies_s: of each answer; in an open loop from when the request was due, so a late client hides nothing.
        refusals_s: of each 429 or 503.
        retry_after: which headers came with refusals; "" for none.
        errors: how often anything else came, by status or by how the connection broke.
        texts: answered.
        tokens: answered, as the server counts them; 0 where it does not.
        late_s: how late requests were sent, 99 in 100 of them; 0 in a closed loop.
        client_cores: processor time of this client ÷ time on the clock.
        resident_bytes: of the server's processes, four times a second; empty where none were named.
        cosine_min: the lowest between an answer's vector, whatever head, and the encoder's; None if not compared.
    """

    clients: int
    rate_per_s: float
    seconds: float
    latencies_s: tuple[float, ...]
    refusals_s: tuple[float, ...]
    retry_after: tuple[str, ...]
    errors: Mapping[str, int]
    texts: int
    tokens: int
    late_s: float
    client_cores: float
    resident_bytes: tuple[int, ...]
    cosine_min: float | None


@dataclass(frozen=True)
class Direct:
    """The encoder called in this process, while the server is idle: tokens per second, and seconds of each request."""

    tokens_per_s: float
    latencies_s: tuple[float, ...]


@dataclass(frozen=True)
class Load:
    """A server under load: a sweep has a stage for every number of clients. `direct` is before and after them."""

    machine: Machine
    url: str
    apis: tuple[str, ...]
    texts_per_request: int
    words_per_text: int
    stages: tuple[Stage, ...]
    direct: tuple[Direct, ...]
    kind: Kind = Kind.LOAD
    schema_version: int = SCHEMA_VERSION
