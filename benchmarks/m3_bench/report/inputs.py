"""The documents that a report is made of, and what they say about runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from m3_bench import documents
from m3_bench.compare import check_together
from m3_bench.documents import Comparison, Document, Equivalence, Model, Rankings, Run
from m3_bench.errors import DocumentError
from m3_bench.figures import Figures, PlacedRun, figures_of, runs_of
from m3_runtime.bundle.reader import sha256_of

_D = TypeVar("_D", bound=Document)


@dataclass(frozen=True)
class Input:
    """A document and its file."""

    path: Path
    sha256: str
    document: Document


@dataclass(frozen=True)
class Inputs:
    """Everything that a report is made of."""

    files: tuple[Input, ...]
    figures: Figures

    def of(self, kind: type[_D]) -> list[_D]:
        """The documents of a kind."""
        return [one.document for one in self.files if isinstance(one.document, kind)]

    @property
    def model(self) -> Model | None:
        """What the runs measured; None without runs."""
        return self.figures.entries[0].placed.run.model if self.figures.entries else None

    @property
    def currency(self) -> str:
        """Of the comparisons' prices."""
        return next((found.prices.currency for found in self.of(Comparison)), "")


def read_inputs(paths: Sequence[Path]) -> Inputs:
    """Read documents; a file that is given twice, or a run that is part of a comparison, counts once.

    Raises:
        DocumentError: a file cannot be read, or is nothing to draw, runs are of different checkpoints or machines, or
            prices in different currencies.
    """
    found: dict[str, Input] = {}
    for path in paths:
        document, digest = documents.read(path), sha256_of(path)
        found[digest] = Input(path, digest, document)
    files = tuple(found.values())
    for file in files:
        if isinstance(file.document, Rankings | Equivalence):
            raise DocumentError(f"{str(file.path)!r} is for m3-bench equivalence; a report does not draw it")
    runs: list[PlacedRun] = []
    for file in sorted(files, key=lambda file: not isinstance(file.document, Comparison)):
        runs += [one for one in _runs_in(file) if all(one.run != other.run for other in runs)]
    check_together(runs)
    inputs = Inputs(files, figures_of(runs))
    currencies = {one.prices.currency for one in inputs.of(Comparison)}
    if len(currencies) > 1:
        raise DocumentError(f"prices are in {' and '.join(sorted(currencies))}; compare again with one --currency")
    return inputs


def _runs_in(file: Input) -> Sequence[PlacedRun]:
    if isinstance(file.document, Comparison):
        return runs_of(file.document, file.path.name)
    return [PlacedRun(file.document, file.path.name)] if isinstance(file.document, Run) else []
