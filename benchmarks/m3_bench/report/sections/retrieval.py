"""What the vectors find on labelled data."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from m3_bench.compare import words
from m3_bench.compare.figures import Place
from m3_bench.compare.machines import described
from m3_bench.documents import MethodRun
from m3_bench.report import plots
from m3_bench.report.inputs import Inputs, PlacedRetrieval
from m3_bench.report.page import NOTHING, Cell, Picture, Section, Table
from m3_bench.report.plots import Axis, Row
from m3_bench.retrieval import stats
from m3_bench.retrieval.stats import Difference

_MAIN = stats.MAIN_METRIC


def section(inputs: Inputs) -> Section | None:
    """Each dataset's table; None without retrieval documents."""
    if not inputs.retrievals:
        return None
    pictures = [_dots(number, one) for number, one in enumerate(inputs.retrievals, 1) if _has_main(one)]
    return Section(
        anchor="retrieval",
        title="Retrieval",
        intro=(
            "Labelled datasets searched with each variant and method; metrics are means over queries. Loss is FP32 "
            f"less the variant, same method, with the interval that holds 95 % of {words.number(stats.RESAMPLES)} "
            "paired resamples of the queries; bold where it leaves 0 out."
        ),
        pictures=tuple(pictures),
        tables=tuple(_table(one) for one in inputs.retrievals),
        notes=tuple(_notes(inputs)),
    )


@dataclass(frozen=True)
class WorstLoss:
    """Where a variant loses most against FP32; `cell` is the loss, `where` method and dataset."""

    cell: Cell
    where: str
    datasets: int


def worst_loss(inputs: Inputs, variant: str, weights_sha256: str) -> WorstLoss | None:
    """Of a variant of some weights over all datasets; None where it was not searched with."""
    found = [
        (loss, one.place.below("methods", number, "metrics", _MAIN), f"{run.method} on {one.document.dataset.name}")
        for one in inputs.retrievals
        for number, run in enumerate(one.document.methods)
        if run.variant == variant and one.document.models[run.bundle].weights_sha256 == weights_sha256
        for loss in (stats.loss(one.document.methods, run),)
        if loss is not None
    ]
    if not found:
        return None
    loss, place, where = max(found, key=lambda one: one[0].mean)
    return WorstLoss(change(loss, place), where, len({place.file for _, place, _ in found}))


def _table(one: PlacedRetrieval) -> Table:
    document = one.document
    names = tuple(dict.fromkeys(name for run in document.methods for name in run.metrics))
    has_gain = len(document.models) > 1
    head = ["", *names, f"loss of {_MAIN}"]
    head += [f"gain over {next(iter(document.models))}"] if has_gain else []
    rows = []
    for number, run in enumerate(document.methods):
        place = one.place.below("methods", number, "metrics")
        row = [Cell(_name(run, one)), *(_mean(run, name, one, number) for name in names)]
        changes = [stats.loss(document.methods, run)] + ([stats.gain(document.methods, run)] if has_gain else [])
        row += [change(found, place.below(_MAIN)) for found in changes]
        rows.append(tuple(row))
    facts = document.dataset
    caption = f"{facts.name}: {facts.queries} queries, {facts.documents} documents"
    return Table(caption, tuple(head), tuple(rows))


def _name(run: MethodRun, one: PlacedRetrieval) -> str:
    return f"{_variant(run.bundle, run.variant, one)} {run.method}".strip()


def _variant(bundle: str, variant: str, one: PlacedRetrieval) -> str:
    """A variant, with its bundle where there are several."""
    return f"{bundle} {variant}".strip() if len(one.document.models) > 1 else variant


def _mean(run: MethodRun, name: str, one: PlacedRetrieval, number: int) -> Cell:
    if name not in run.metrics:
        return NOTHING
    place = one.place.below("methods", number, "metrics", name)
    return Cell(f"{stats.mean(run.metrics[name]):.3f}", place, f"mean of {len(run.metrics[name])} queries")


def change(found: Difference | None, place: Place) -> Cell:
    """A loss or a gain with its interval; strong where it is clear."""
    if found is None:
        return NOTHING
    return Cell(
        f"{_signed(found.mean)} ({_signed(found.low)} … {_signed(found.high)})",
        place,
        "paired bootstrap over queries",
        is_strong=found.is_clear,
    )


def _signed(value: float) -> str:
    """Three digits with a sign, which 0 has none of.

    >>> _signed(-0.0041), _signed(-0.0001), _signed(0.002)
    ('−0.004', '0.000', '+0.002')
    """
    return "0.000" if abs(value) < 0.0005 else f"{value:+.3f}".replace("-", "−")


def _dots(number: int, one: PlacedRetrieval) -> Picture:
    """The main metric of every method, best first; a mark for each variant."""
    document = one.document
    variants = list(dict.fromkeys((run.bundle, run.variant) for run in document.methods))
    found: dict[str, list[tuple[int, float, str]]] = {}
    for run in document.methods:
        if run.metrics.get(_MAIN):
            mean = stats.mean(run.metrics[_MAIN])
            mark = (variants.index((run.bundle, run.variant)), mean, f"{_name(run, one)}: {mean:.3f}")
            found.setdefault(run.method, []).append(mark)
    rows = sorted((Row(name, tuple(marks)) for name, marks in found.items()), key=_best, reverse=True)
    legend = [(_variant(bundle, variant, one) or "BM25", n) for n, (bundle, variant) in enumerate(variants)]
    title = f"{_MAIN} on {document.dataset.name}"
    caption = "A row is a method, a mark a variant. Further right is better; mind where the axis begins."
    told = f"{caption} {'; '.join(words for row in rows for _, _, words in row.marks)}."
    axis = Axis(_MAIN, lambda value: f"{value:g}", ticks=_ticks([mean for row in rows for _, mean, _ in row.marks]))
    return Picture(
        f"retrieval-{number}", title, caption, plots.rows(f"retrieval-{number}", title, told, rows, legend, axis)
    )


def _has_main(one: PlacedRetrieval) -> bool:
    return any(run.metrics.get(_MAIN) for run in one.document.methods)


def _best(row: Row) -> float:
    return max(mean for _, mean, _ in row.marks)


def _ticks(values: Sequence[float]) -> tuple[float, ...]:
    """From below the lowest to above the highest value, in steps that fit.

    >>> _ticks([0.81, 0.96])
    (0.8, 0.85, 0.9, 0.95, 1.0)
    """
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 1.0) if max(values) - min(values) <= 5 * step)
    first, last = math.floor(min(values) / step), math.ceil(max(values) / step)
    return tuple(round(step * n, 2) for n in range(first, max(last, first + 1) + 1))


def _notes(inputs: Inputs) -> Iterator[str]:
    for one in inputs.retrievals:
        document = one.document
        models = ", ".join(f"{bundle} ({model.name})" for bundle, model in document.models.items())
        yield f"{document.dataset.name}: {models}, on {described(document.machine)}."
        yield from (f"{document.dataset.name}: {note}" for note in document.notes)
