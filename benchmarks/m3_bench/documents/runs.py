"""Contenders measured on a machine, and the machine's ceilings."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from m3_bench.documents.kinds import SCHEMA_VERSION, Kind
from m3_bench.machine import Machine
from m3_runtime.records import OPTIONAL


@dataclass(frozen=True)
class Model:
    """What was measured: the checkpoint's name, the vector space it makes, and the digest of its weights.

    `flop_per_token` is of its projections (`stats.flop_per_token`), for shares of the ceiling; 0 if unknown.
    """

    name: str
    space_id: str
    weights_sha256: str
    flop_per_token: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """Calls that are timed.

    Attributes:
        name: short, unique in its file.
        title: in words, for tables.
        lengths: tokens of each text of one call, both special tokens counted.
        heads: "dense", "sparse", "colbert".
        calls: how often each contender is called in a round.
        clients: callers at a time; more than one shares a loaded model between threads.
        contenders: who is asked, by name; everybody if empty.
        group: scenarios of one group take turns with each other, not only their contenders.
        most_rounds: for what takes long; 0 is no limit.
        processes: each contender so many times at once, each with all calls.
        threads: of each process; 0 for those of the run.
        by_length: a call's texts go in a call for each length.
        is_start: a round is a process of its own, and its one call goes from its start to its first vectors.
    """

    name: str
    title: str
    lengths: tuple[int, ...]
    heads: tuple[str, ...]
    calls: int
    clients: int = 1
    contenders: tuple[str, ...] = field(default=(), metadata=OPTIONAL)
    group: str = field(default="", metadata=OPTIONAL)
    most_rounds: int = field(default=0, metadata=OPTIONAL)
    processes: int = field(default=1, metadata=OPTIONAL)
    threads: int = field(default=0, metadata=OPTIONAL)
    by_length: bool = field(default=False, metadata=OPTIONAL)
    is_start: bool = field(default=False, metadata=OPTIONAL)

    @property
    def tokens(self) -> int:
        """Tokens of one call, before it is parted by length."""
        return sum(self.lengths)

    @property
    def round_tokens(self) -> int:
        """Tokens of a contender's round, of all its processes."""
        return self.tokens * self.calls * self.processes

    @property
    def batches(self) -> tuple[tuple[int, ...], ...]:
        """Lengths of the texts of every call that each process of a contender gets in a round.

        >>> Scenario("", "", (7, 5, 7), ("dense",), calls=2, by_length=True).batches
        ((5,), (7, 7), (5,), (7, 7))
        """
        one = [self.lengths]
        if self.by_length:
            one = [(length,) * self.lengths.count(length) for length in sorted(set(self.lengths))]
        return tuple(one) * self.calls


@dataclass(frozen=True)
class Round:
    """One contender's turn in one scenario; the n-th entry of each tuple is the n-th call.

    Attributes:
        seconds: from texts to numbers of all heads, of each call.
        tokenise_s: of which tokenising; empty where a contender does not tell (it may overlap the engine).
        engine_s: of which the engine's run; empty likewise. What is left is decoding heads and Python.
        wall_s: of the whole turn; with several clients less than the sum of `seconds`.
        cpu_s: processor seconds that the process took for the turn; 0 where the system does not say.
        resident_bytes: resident memory after the turn.
        peak_bytes: the highest in this scenario.
    """

    seconds: tuple[float, ...]
    tokenise_s: tuple[float, ...]
    engine_s: tuple[float, ...]
    wall_s: float
    cpu_s: float
    resident_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class ScenarioRun:
    """One contender at one scenario, in a process of its own.

    Attributes:
        scenario: its name.
        load_s: from the start of the process until the model was loaded.
        first_s: the first call after that, which no round counts.
        rounds: its turns.
        error: why it could not be measured; empty if it was.
    """

    scenario: str
    load_s: float
    first_s: float
    rounds: tuple[Round, ...]
    error: str = ""


@dataclass(frozen=True)
class OutputsFile:
    """Where a contender's vectors of the recorded texts are: a file beside the document, and its digest."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Contender:
    """Who ran.

    Attributes:
        name: "onnx-int8", "bge-m3-lite int8", "PyTorch fp16 on cuda", …
        is_ours: a variant of a bundle, not a peer or a reference.
        engine: "onnxruntime", "openvino", "torch".
        precision: "fp32", "int8", "bf16", …
        versions: releases of the packages that compute.
        heads: which of "dense", "sparse", "colbert" it has.
        size_bytes: of its weights on disk; 0 if unknown.
        outputs: its vectors of the recorded texts; None where it gave none.
        scenarios: what was measured.
    """

    name: str
    is_ours: bool
    engine: str
    precision: str
    versions: Mapping[str, str]
    heads: tuple[str, ...]
    size_bytes: int
    outputs: OutputsFile | None
    scenarios: tuple[ScenarioRun, ...]


@dataclass(frozen=True)
class Run:
    """Contenders on one machine, in turns. Also what a reference recording says about itself.

    Attributes:
        machine: where.
        model: what.
        threads: of each contender; 0 on an accelerator.
        cpus: the logical CPUs that the processes were held to.
        texts_sha256: digest of the texts whose vectors were kept.
        scenarios: what each contender was asked for.
        contenders: who, and what came of it.
        products: matrix products that took turns with them, for shares of the ceiling.
    """

    machine: Machine
    model: Model
    threads: int
    cpus: tuple[int, ...]
    texts_sha256: str
    scenarios: tuple[Scenario, ...]
    contenders: tuple[Contender, ...]
    products: tuple[Contender, ...] = field(default=(), metadata=OPTIONAL)
    kind: Kind = Kind.RUN
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Ceiling:
    """One way of multiplying matrices, M 2048, K 1024, N 4096.

    Attributes:
        engine: who multiplied.
        precision: "fp32", "bf16" or "int8".
        flop_per_s: of each timed product; empty where there is none.
        reason: why there is none, or why it does not count (not exact); empty if it counts.
    """

    engine: str
    precision: str
    flop_per_s: tuple[float, ...]
    reason: str = ""


@dataclass(frozen=True)
class Roofline:
    """This machine's ceilings."""

    machine: Machine
    threads: int
    ceilings: tuple[Ceiling, ...]
    kind: Kind = Kind.ROOFLINE
    schema_version: int = SCHEMA_VERSION
