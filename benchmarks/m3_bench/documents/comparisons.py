"""Runs beside a reference."""

from dataclasses import dataclass

from m3_bench.documents.kinds import SCHEMA_VERSION, Kind
from m3_bench.documents.runs import Run
from m3_runtime.bundle.manifest import ColbertParity, DenseParity, SparseParity


@dataclass(frozen=True)
class TextParity:
    """Distances of each text, for distributions; empty where the head is missing.

    Attributes:
        dense: (N,) cosines.
        jaccard: (N,) weighted Jaccard of lexical weights.
        colbert: (N,) mean cosine of the text's rows.
    """

    dense: tuple[float, ...]
    jaccard: tuple[float, ...]
    colbert: tuple[float, ...]


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
    """What an hour costs, by role: `cpu` for runs, `gpu` for a reference on an accelerator; None if not given."""

    currency: str = "USD"
    cpu: float | None = None
    gpu: float | None = None


@dataclass(frozen=True)
class SourceFile:
    """A file that a document was made from: its name without folders, and its digest."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Comparison:
    """Runs beside a reference. `reference` and `runs` hold their raw values again, so that a report needs one file.

    `sources` are the reference's file and those of the runs, in this order.
    """

    reference: Run
    runs: tuple[Run, ...]
    sources: tuple[SourceFile, ...]
    parity: tuple[Compared, ...]
    prices: Prices
    notes: tuple[str, ...]
    kind: Kind = Kind.COMPARISON
    schema_version: int = SCHEMA_VERSION
