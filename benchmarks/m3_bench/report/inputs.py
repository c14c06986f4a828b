"""The documents that a report is made of, and what they say about runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from m3_bench import documents
from m3_bench.compare.figures import Board, Place, PlacedRun, board, runs_of
from m3_bench.documents import Comparison, Document, Margins, Model, Retrieval, Roofline, Run
from m3_bench.errors import DocumentError
from m3_runtime.bundle.reader import sha256_of


@dataclass(frozen=True)
class Input:
    """A document and its file; `name` is its name among the raw files of the report."""

    path: Path
    name: str
    sha256: str
    document: Document

    @property
    def place(self) -> Place:
        """Its root."""
        return Place(self.name, "")


@dataclass(frozen=True)
class PlacedComparison:
    """A comparison and where it stands."""

    document: Comparison
    place: Place


@dataclass(frozen=True)
class PlacedRoofline:
    """A roofline and where it stands."""

    document: Roofline
    place: Place


@dataclass(frozen=True)
class PlacedRetrieval:
    """A retrieval document and where it stands."""

    document: Retrieval
    place: Place


@dataclass(frozen=True)
class PlacedMargins:
    """A margins document and where it stands."""

    document: Margins
    place: Place


@dataclass(frozen=True)
class Inputs:
    """Everything that a report is made of, by kind."""

    files: tuple[Input, ...]
    board: Board
    comparisons: tuple[PlacedComparison, ...]
    rooflines: tuple[PlacedRoofline, ...]
    retrievals: tuple[PlacedRetrieval, ...]
    margins: tuple[PlacedMargins, ...]

    @property
    def model(self) -> Model | None:
        """What the runs measured; None without runs."""
        return self.board.whos[0].placed.run.model if self.board.whos else None

    @property
    def currency(self) -> str:
        """Of the first comparison's prices."""
        return self.comparisons[0].document.prices.currency if self.comparisons else ""


def read_inputs(paths: Sequence[Path]) -> Inputs:
    """Read documents, and put runs that are part of a comparison into it alone.

    Raises:
        DocumentError: a file cannot be read, or runs are of different checkpoints.
    """
    files = tuple(_read(paths))
    comparisons = tuple(PlacedComparison(f.document, f.place) for f in files if isinstance(f.document, Comparison))
    placed = _runs(files)
    _check_one_model(placed)
    _check_scenarios(placed)
    _check_one_currency(comparisons)
    return Inputs(
        files=files,
        board=board(placed),
        comparisons=comparisons,
        rooflines=tuple(PlacedRoofline(f.document, f.place) for f in files if isinstance(f.document, Roofline)),
        retrievals=tuple(PlacedRetrieval(f.document, f.place) for f in files if isinstance(f.document, Retrieval)),
        margins=tuple(PlacedMargins(f.document, f.place) for f in files if isinstance(f.document, Margins)),
    )


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


def _runs(files: Sequence[Input]) -> list[PlacedRun]:
    found: list[PlacedRun] = []
    for file in files:
        if isinstance(file.document, Comparison):
            found += [one for one in runs_of(file.document, file.place) if _is_new(one, found)]
    for file in files:
        if isinstance(file.document, Run):
            alone = PlacedRun(run=file.document, place=file.place, source=file.name)
            found += [alone] if _is_new(alone, found) else []
    return found


def _is_new(one: PlacedRun, found: Sequence[PlacedRun]) -> bool:
    return all(one.run != other.run for other in found)


def _check_one_model(placed: Sequence[PlacedRun]) -> None:
    for one in placed[1:]:
        first = placed[0]
        if one.run.model.weights_sha256 != first.run.model.weights_sha256:
            raise DocumentError(
                f"{first.place.file!r} measured {first.run.model.name} (weights "
                f"{first.run.model.weights_sha256[:12]}), {one.place.file!r} {one.run.model.name} "
                f"({one.run.model.weights_sha256[:12]}): their speeds do not compare; make a report of each"
            )


def _check_scenarios(placed: Sequence[PlacedRun]) -> None:
    seen: dict[str, tuple[object, str]] = {}
    for one in placed:
        for scenario in one.run.scenarios:
            shape = (scenario.lengths, scenario.heads, scenario.clients)
            first, file = seen.setdefault(scenario.name, (shape, one.place.file))
            if first != shape:
                raise DocumentError(
                    f"scenario {scenario.name!r} of {one.place.file!r} is not that of {file!r}: other lengths, heads "
                    "or clients; measure both with the same scenarios, or make a report of each"
                )


def _check_one_currency(comparisons: Sequence[PlacedComparison]) -> None:
    used = {c.document.prices.currency for c in comparisons}
    if len(used) > 1:
        raise DocumentError(f"prices are in {' and '.join(sorted(used))}; compare again with one --currency")
