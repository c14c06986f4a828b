"""The documents that a report is made of, and what they say about runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from m3_bench import documents
from m3_bench.compare import check_together
from m3_bench.documents import Comparison, Document, Model, Run
from m3_bench.errors import DocumentError
from m3_bench.figures import Figures, Place, PlacedRun, figures_of, runs_of
from m3_runtime.bundle.reader import sha256_of

_D = TypeVar("_D", bound=Document)


@dataclass(frozen=True)
class Input:
    """A document and its file; `name` is its name among the raw files of the report."""

    path: Path
    name: str
    sha256: str
    document: Document


@dataclass(frozen=True)
class Inputs:
    """Everything that a report is made of."""

    files: tuple[Input, ...]
    figures: Figures

    def of(self, kind: type[_D]) -> list[tuple[_D, Place]]:
        """The documents of a kind, each with the place of its root."""
        return [(one.document, Place(one.name)) for one in self.files if isinstance(one.document, kind)]

    @property
    def model(self) -> Model | None:
        """What the runs measured; None without runs."""
        return self.figures.entries[0].placed.run.model if self.figures.entries else None

    @property
    def currency(self) -> str:
        """Of the comparisons' prices."""
        return next((found.prices.currency for found, _ in self.of(Comparison)), "")


def read_inputs(paths: Sequence[Path]) -> Inputs:
    """Read documents; a run that is part of a comparison counts once.

    Raises:
        DocumentError: a file cannot be read, or runs are of different checkpoints.
    """
    files = tuple(_read(paths))
    runs: list[PlacedRun] = []
    for file in sorted(files, key=lambda file: not isinstance(file.document, Comparison)):
        runs += [one for one in _runs_in(file) if all(one.run != other.run for other in runs)]
    check_together([(one.place.file, one.run) for one in runs])
    inputs = Inputs(files, figures_of(runs))
    currencies = {found.prices.currency for found, _ in inputs.of(Comparison)}
    if len(currencies) > 1:
        raise DocumentError(f"prices are in {' and '.join(sorted(currencies))}; compare again with one --currency")
    return inputs


def _read(paths: Sequence[Path]) -> Iterator[Input]:
    """Each file once, whatever it is called; files of one name get numbers."""
    digests: set[str] = set()
    names: set[str] = set()
    for path in paths:
        document, digest = documents.read(path), sha256_of(path)
        if digest in digests:
            continue
        digests.add(digest)
        name, number = path.name, 2
        while name.casefold() in names:  # some file systems do not tell A from a
            name, number = f"{path.stem}-{number}{path.suffix}", number + 1
        names.add(name.casefold())
        yield Input(path, name, digest, document)


def _runs_in(file: Input) -> Sequence[PlacedRun]:
    if isinstance(file.document, Comparison):
        return runs_of(file.document, Place(file.name))
    return [PlacedRun(file.document, Place(file.name), file.name)] if isinstance(file.document, Run) else []
