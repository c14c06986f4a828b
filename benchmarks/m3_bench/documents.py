"""What measurements are written to: JSON documents, one kind a command, every raw value kept.

A document is a frozen value. `write` leaves a whole file or none, `read` refuses what it does not know. Figures that
can be computed from raw values (percentiles, ratios, costs) are not stored: `stats` computes them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar, get_args

from m3_bench.cycles import Cycle
from m3_bench.errors import BenchError, DocumentError
from m3_bench.machine import Machine
from m3_runtime.bundle.manifest import ColbertParity, DenseParity, SparseParity
from m3_runtime.errors import BundleFormatError
from m3_runtime.io.atomic import write_whole
from m3_runtime.records import OPTIONAL, from_json, to_json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Model:
    """The model that was measured: the checkpoint's name, its vector space, and the digest of its weights.

    `flop_per_token` is of its projections, for shares of the ceiling; 0 if unknown.
    """

    name: str
    space_id: str
    weights_sha256: str
    flop_per_token: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """Calls that are timed."""

    name: str  # short, unique in its file
    title: str  # in words, for tables
    lengths: tuple[int, ...]  # tokens of each text of one call, both special tokens counted
    heads: tuple[str, ...]  # "dense", "sparse", "colbert"
    calls: int  # how often each contender is called in a round
    clients: int = 1  # callers at a time; more than one shares a loaded model between threads
    contenders: tuple[str, ...] = field(default=(), metadata=OPTIONAL)  # which are measured; all if empty
    group: str = field(default="", metadata=OPTIONAL)  # whose scenarios take turns with each other too
    most_rounds: int = field(default=0, metadata=OPTIONAL)  # for what takes long; 0 is no limit
    processes: int = field(default=1, metadata=OPTIONAL)  # at once, each with all calls
    threads: int = field(default=0, metadata=OPTIONAL)  # of each process; 0 for those of the run
    by_length: bool = field(default=False, metadata=OPTIONAL)  # a call's texts go in a call for each length
    is_start: bool = field(default=False, metadata=OPTIONAL)  # a round is a process, from start to first vectors

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
    """One contender's turn in one scenario; the n-th entry of each tuple is the n-th call."""

    seconds: tuple[float, ...]  # from texts to all heads' numbers, of each call
    wall_s: float  # of the whole turn; with several clients less than the sum of `seconds`
    cpu_s: float  # processor seconds of the process; 0 where the system does not report them
    resident_bytes: int  # resident memory after the turn
    peak_bytes: int  # the highest in this scenario
    tokenise_s: tuple[float, ...] = field(default=(), metadata=OPTIONAL)  # earlier releases kept it
    engine_s: tuple[float, ...] = field(default=(), metadata=OPTIONAL)  # likewise


@dataclass(frozen=True)
class ScenarioRun:
    """One contender at one scenario, in a process of its own.

    `load_s` is from the start of the process until the model was loaded, `first_s` the first call after that, which no
    round counts. `error` says why it could not be measured; empty if it was.
    """

    scenario: str
    load_s: float
    first_s: float
    rounds: tuple[Round, ...]
    error: str = ""


@dataclass(frozen=True)
class OutputsFile:
    """A contender's vectors of the recorded texts: a file beside the document, and its digest."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Contender:
    """A contender: what was measured, and its results."""

    name: str  # "onnx-int8", "bge-m3-lite int8", "PyTorch fp16 on cuda", …
    is_ours: bool  # a variant of a bundle, not a peer or a reference
    engine: str  # "onnxruntime", "openvino", "torch"
    precision: str  # "fp32", "int8", "bf16", …
    versions: Mapping[str, str]  # releases of the packages that compute
    heads: tuple[str, ...]  # which of "dense", "sparse", "colbert" it has
    size_bytes: int  # of its weights on disk; 0 if unknown
    outputs: OutputsFile | None  # its vectors of the recorded texts; None if it kept none
    scenarios: tuple[ScenarioRun, ...]  # what was measured


@dataclass(frozen=True)
class Run:
    """Contenders on one machine, in turns. A reference recording holds one too.

    `threads` are of each contender (0 on an accelerator), `cpus` the logical CPUs that the processes were held to,
    `texts_sha256` the digest of the texts whose vectors were kept. `products` are matrix products that took turns with
    the contenders, for shares of the ceiling.
    """

    machine: Machine
    model: Model
    threads: int
    cpus: tuple[int, ...]
    texts_sha256: str
    scenarios: tuple[Scenario, ...]
    contenders: tuple[Contender, ...]
    products: tuple[Contender, ...] = field(default=(), metadata=OPTIONAL)
    kind: str = "run"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Ceiling:
    """The FLOP/s of each timed matrix product (M 2048, K 1024, N 4096) of an engine in "fp32", "bf16" or "int8".

    `reason` says why there is none, or why it does not count (not exact); empty if it counts.
    """

    engine: str
    precision: str
    flop_per_s: tuple[float, ...]
    reason: str = ""


@dataclass(frozen=True)
class Roofline:
    """A machine's ceilings."""

    machine: Machine
    threads: int
    ceilings: tuple[Ceiling, ...]
    kind: str = "roofline"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class TextParity:
    """Of each of N texts; empty where the head is missing."""

    dense: tuple[float, ...]  # (N,) cosines
    jaccard: tuple[float, ...]  # (N,) weighted Jaccard of lexical weights
    colbert: tuple[float, ...]  # (N,) mean cosines of the rows


@dataclass(frozen=True)
class Compared:
    """A contender's vectors against the reference's; None for a head that either lacks. `run` counts from 0."""

    run: int
    contender: str
    dense: DenseParity | None
    sparse: SparseParity | None
    colbert: ColbertParity | None
    texts: TextParity


@dataclass(frozen=True)
class Prices:
    """What an hour costs: `cpu` for runs, `gpu` for a reference on an accelerator; None if not given."""

    currency: str = "USD"
    cpu: float | None = None
    gpu: float | None = None

    def per_hour(self, machine: Machine) -> float | None:
        """The price of a machine's hour; None if not given."""
        return self.gpu if machine.accelerator else self.cpu


@dataclass(frozen=True)
class SourceFile:
    """A file that a document was made from: its name without folders, and its digest."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Comparison:
    """Runs beside a reference, with all their raw values again, so that a report needs one file."""

    reference: Run
    runs: tuple[Run, ...]
    sources: tuple[SourceFile, ...]  # the reference's file and those of the runs, in this order
    parity: tuple[Compared, ...]
    prices: Prices
    notes: tuple[str, ...]
    kind: str = "comparison"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class DatasetFacts:
    """The labelled dataset: name, layout, digest of what was read, and how much."""

    name: str
    layout: str
    sha256: str
    queries: int
    documents: int
    relevant_pairs: int


@dataclass(frozen=True)
class MethodRun:
    """A search method with one variant; the n-th entry of each tuple is the n-th query.

    `bundle` is a key of `Retrieval.models`; it and `variant` are "" for BM25, which needs neither. `metrics` maps
    "nDCG@10", "R@10", "R@100", "RR@10" to (Q,) values. `query_ms` is the median time of a query, one at a time, of a
    reranked ranking with that of the ranking; `index_bytes` what the documents take in memory; None where they were not
    measured.
    """

    bundle: str
    variant: str
    method: str
    metrics: Mapping[str, tuple[float, ...]]
    query_ms: float | None = field(default=None, metadata=OPTIONAL)
    index_bytes: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Retrieval:
    """A labelled dataset searched with each variant and method; `models` by bundle, named as its folder.

    `notes` say what was left out and why: variants, methods, queries.
    """

    machine: Machine
    models: Mapping[str, Model]
    threads: int
    dataset: DatasetFacts
    query_ids: tuple[str, ...]
    settings: Mapping[str, str]
    methods: tuple[MethodRun, ...]
    notes: tuple[str, ...]
    kind: str = "retrieval"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class PairScoresOf:
    """Scores of a bundle's variant by one method (a head or a hybrid): per query, of its positives and negatives.

    `bundle` is the folder's name.
    """

    bundle: str
    model: Model
    variant: str
    method: str
    positives: tuple[tuple[float, ...], ...]
    negatives: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class BadLine:
    """A line of a fine-tuning file that was left out, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Margins:
    """How far positives score above negatives; `query_lines` are the lines of the queries that were scored."""

    machine: Machine
    source: str
    source_sha256: str
    lines: int
    bad_lines: tuple[BadLine, ...]
    query_lines: tuple[int, ...]
    scores: tuple[PairScoresOf, ...]
    notes: tuple[str, ...]
    kind: str = "margins"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Stage:
    """One load on a server. Only answers with vectors have latencies; refusals and errors are kept apart."""

    clients: int  # of a closed loop, each of which sends when it has its answer; 0 in an open loop
    rate_per_s: float  # requests that an open loop sends, whether or not earlier ones are answered; 0 in a closed one
    seconds: float  # from the first request to the last answer
    latencies_s: tuple[float, ...]  # of each answer; in an open loop from when the request was due
    refusals_s: tuple[float, ...]  # of each 429 or 503
    retry_after: tuple[str, ...]  # which headers came with refusals; "" for none
    errors: Mapping[str, int]  # how often anything else came, by status or by how the connection broke
    texts: int  # answered
    tokens: int  # answered, as the server counts them; 0 where it does not
    late_s: float  # how late requests were sent, 99 in 100 of them; 0 in a closed loop
    client_cores: float  # processor time of this client ÷ time on the clock
    resident_bytes: tuple[int, ...]  # of the server's processes, four times a second; empty where none were named
    cosine_min: float | None  # the lowest of an answer's vectors with the encoder's; None if not compared


@dataclass(frozen=True)
class Load:
    """A server under load: a sweep has a stage for every number of clients."""

    machine: Machine
    url: str
    apis: tuple[str, ...]
    texts_per_request: int
    words_per_text: int
    stages: tuple[Stage, ...]
    kind: str = "load"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Soak:
    """A server under changing load for long; cycles that end before `warmup_s` do not count as growth."""

    machine: Machine
    model: Model
    variant: str
    versions: Mapping[str, str]  # releases of the packages that compute
    server_options: tuple[str, ...]
    clients: int
    warmup_s: float
    cycles: tuple[Cycle, ...]
    kind: str = "soak"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Ranked:
    """What a method finds: per query, ids and scores, best first; no scores where they are sums of other scores."""

    method: str
    ids: tuple[tuple[str, ...], ...]
    scores: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Rankings:
    """An index searched with queries: all that another index is compared by, without a vector.

    `ids_sha256` is the digest of the documents' ids, "" where they are not known.
    """

    index: str
    space_id: str
    documents: int
    ids_sha256: str
    queries: int
    queries_sha256: str
    depth: int
    ranked: tuple[Ranked, ...]
    kind: str = "rankings"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Equivalence:
    """Two indexes searched with the same queries."""

    first: Rankings
    second: Rankings
    kind: str = "equivalence"
    schema_version: int = SCHEMA_VERSION


Document = Run | Roofline | Comparison | Retrieval | Margins | Load | Soak | Rankings | Equivalence
_D = TypeVar("_D", bound=Document)
KINDS: Mapping[str, type[Document]] = {one.kind: one for one in get_args(Document)}
# JSON text has line breaks between values only, never within them.
_PLAIN_LIST, _BREAK = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s*\]"), re.compile(r"\n\s+")


def to_text(document: Document) -> str:
    """A document as JSON text: a key a line, and lists of plain values on one."""
    text = json.dumps(to_json(document), ensure_ascii=False, allow_nan=False, indent=1)
    return _PLAIN_LIST.sub(lambda found: f"[{_BREAK.sub(' ', found[1])}]", text) + "\n"


def from_text(text: str, where: str) -> Document:
    """The document of a JSON text; `where` names it in errors.

    Raises:
        DocumentError: not JSON, of an unknown kind or a newer schema, or malformed.
    """
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{where} is not JSON ({error}); was it cut off? measure again") from error
    kind, version = (data.get("kind"), data.get("schema_version")) if isinstance(data, dict) else (None, None)
    if not isinstance(kind, str) or kind not in KINDS or type(version) is not int:
        raise DocumentError(
            f"{where} is not a document of m3-bench: expected one of the kinds {', '.join(KINDS)}, got {kind!r}"
        )
    if version != SCHEMA_VERSION:
        remedy = "upgrade m3-runtime" if version > SCHEMA_VERSION else "measure again"
        raise DocumentError(f"{where} has schema version {version}, this release reads {SCHEMA_VERSION}; {remedy}")
    try:
        return from_json(KINDS[kind], data, where)
    except BundleFormatError as error:
        raise DocumentError(f"{error}; the file was not written by m3-bench, or was changed") from error


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no measurement")


def expected(kind: type[_D], document: Document, where: str) -> _D:
    """The document, if it is of a kind.

    Raises:
        DocumentError: it is of another.
    """
    if not isinstance(document, kind):
        raise DocumentError(f"{where} is {_in_words(document.kind)}, expected {_in_words(kind.kind)}")
    return document


def _in_words(kind: str) -> str:
    words = {one: f"a file of {one}" for one in (Rankings.kind, Margins.kind)}
    return words.get(kind, f"an {kind}" if kind[0] in "aeiou" else f"a {kind}")


def read(path: Path) -> Document:
    """Read a document.

    Raises:
        DocumentError: it cannot be read; see `from_text`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"{str(path)!r} cannot be read: {error}") from error
    return from_text(text, str(path))


def read_as(kind: type[_D], path: Path) -> _D:
    """Read a document of one kind.

    Raises:
        DocumentError: it cannot be read, or is of another kind.
    """
    return expected(kind, read(path), repr(str(path)))


def write(document: Document, path: Path) -> None:
    """Write a document, whole or not at all.

    Raises:
        BenchError: it cannot be written.
    """
    try:
        write_whole(path, to_text(document).encode())
    except OSError as error:
        raise BenchError(f"{str(path)!r} cannot be written: {error}") from error
