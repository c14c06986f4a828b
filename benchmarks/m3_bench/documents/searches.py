"""Labelled texts: what is found, and how far right stands above wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from m3_bench.documents.kinds import SCHEMA_VERSION, Kind
from m3_bench.documents.runs import Model
from m3_bench.machine import Machine


@dataclass(frozen=True)
class DatasetFacts:
    """What was searched: name, layout, digest of what was read, and how much."""

    name: str
    layout: str
    sha256: str
    queries: int
    documents: int
    relevant_pairs: int


@dataclass(frozen=True)
class MethodRun:
    """One way of searching with one variant; the n-th entry of each tuple is the n-th query.

    `bundle` is a key of `Retrieval.models`; it and `variant` are "" for BM25, which needs neither. `metrics` maps
    "nDCG@10", "R@10", "R@100", "RR@10" to (Q,) values.
    """

    bundle: str
    variant: str
    method: str
    metrics: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Retrieval:
    """Searching a labelled dataset with each variant and method; `models` by bundle, named as its folder.

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
    kind: Kind = Kind.RETRIEVAL
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class PairScoresOf:
    """One bundle's variant on fine-tuning lines, by head or hybrid.

    Attributes:
        bundle: its folder's name.
        model: its weights.
        variant: which.
        method: "dense", "sparse", "colbert", or a hybrid with its weights.
        positives: per query, the scores of its positives.
        negatives: per query, the scores of its negatives.
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
    """How far positives stand above negatives; `query_lines` are the lines of the queries that were scored."""

    machine: Machine
    source: str
    source_sha256: str
    lines: int
    bad_lines: tuple[BadLine, ...]
    query_lines: tuple[int, ...]
    scores: tuple[PairScoresOf, ...]
    notes: tuple[str, ...]
    kind: Kind = Kind.MARGINS
    schema_version: int = field(default=SCHEMA_VERSION)
