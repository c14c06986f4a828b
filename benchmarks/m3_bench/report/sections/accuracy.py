"""Parity with the reference, per head, and what accuracy costs in speed."""

from collections.abc import Iterator

from m3_bench.compare import words
from m3_bench.report import cells, pictures
from m3_bench.report.choice import Choice, PlacedParity
from m3_bench.report.inputs import Inputs
from m3_bench.report.page import NOTHING, Cell, Section, Table

_HOW = (
    "Each text's vectors against those that the reference gave. Cosines and Jaccard indices are 1 where nothing "
    "differs, and are rounded down. The same top 5: the five heaviest words keep their order, near-ties aside."
)
_HEAD = (
    "",
    "dense cosine, mean",
    "lowest",
    "sparse Jaccard, mean",
    "lowest",
    "same top 5",
    "ColBERT cosine, mean",
    "5th percentile",
    "lowest",
)


def section(inputs: Inputs, found: tuple[PlacedParity, ...], choice: Choice) -> Section | None:
    """The section; None without parity."""
    if not found:
        return None
    front = pictures.speed_and_accuracy(inputs.board, choice.load, found)
    return Section(
        anchor="accuracy",
        title="Accuracy",
        intro=_HOW,
        pictures=(*((front,) if front is not None else ()), *pictures.parity_distributions(found)),
        tables=tuple(_tables(found)),
    )


def _tables(found: tuple[PlacedParity, ...]) -> Iterator[Table]:
    for reference in dict.fromkeys(one.reference for one in found):
        these = [one for one in found if one.reference == reference]
        texts = len(these[0].compared.texts.dense)
        yield Table(f"Parity with {reference}, {texts} texts", _HEAD, tuple(_row(one) for one in these))


def _row(one: PlacedParity) -> tuple[Cell, ...]:
    dense, sparse, colbert = one.compared.dense, one.compared.sparse, one.compared.colbert
    same = NOTHING if sparse is None else _share(one, sparse.top5_same_near_ties_aside)
    return (
        Cell(one.label),
        _likeness(one, None if dense is None else dense.cosine_mean, "dense/cosine_mean"),
        _likeness(one, None if dense is None else dense.cosine_min, "dense/cosine_min"),
        _likeness(one, None if sparse is None else sparse.jaccard_mean, "sparse/jaccard_mean"),
        _likeness(one, None if sparse is None else sparse.jaccard_min, "sparse/jaccard_min"),
        same,
        _likeness(one, None if colbert is None else colbert.cosine_mean, "colbert/cosine_mean"),
        _likeness(one, None if colbert is None else colbert.cosine_p5, "colbert/cosine_p5"),
        _likeness(one, None if colbert is None else colbert.cosine_min, "colbert/cosine_min"),
    )


def _likeness(one: PlacedParity, value: float | None, key: str) -> Cell:
    how = "" if value is None else f"{value:.8f}"
    return cells.likeness(value, one.place, key, how)


def _share(one: PlacedParity, value: float) -> Cell:
    return Cell(words.share(value), one.place.below("sparse", "top5_same_near_ties_aside"), "share of texts")
