"""The tables of retrieval and margins, with paired intervals. The report and the terminal show the same ones."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TypeVar

from m3_bench import formats, stats
from m3_bench.documents import Margins, MethodRun, PairScoresOf, Retrieval
from m3_bench.report.page import Cell, Cells, Table
from m3_bench.stats import MAIN_METRIC, Difference, ValuesOf

_R = TypeVar("_R", MethodRun, PairScoresOf)

_LOSS, _GAIN = "loss of ", "gain of "
_INTERVALS = (
    f"Brackets hold 95 % of {stats.RESAMPLES} paired bootstrap resamples of the queries; bold where 0 is outside."
)
_LOSSES = "Losses are against FP32, same bundle and method; a loss below 0 is a gain."
MARGINS = (
    "The margin of a query is its best positive less its best negative; pair accuracy is the share of (positive, "
    "negative) pairs in the right order."
)


def intervals_in_words(tables: Iterable[Table]) -> str:
    """What the brackets of losses and gains hold; nothing where no table has any, as those of one variant have none."""
    heads = [head for table in tables for head in table.head]
    has_losses = any(head.startswith(_LOSS) for head in heads)
    has_any = has_losses or any(head.startswith(_GAIN) for head in heads)
    return " ".join([_INTERVALS] * has_any + [_LOSSES] * has_losses)


def main_metric(run: MethodRun) -> Sequence[float]:
    """The values that methods are ranked by."""
    return run.metrics.get(MAIN_METRIC, ())


def retrieval_table(document: Retrieval) -> Table:
    """Methods by metrics, with what INT8 loses and what later bundles gain."""

    def row(run: MethodRun) -> Cells:
        means = {name: _mean(values) for name, values in run.metrics.items()}
        return (
            {"": _name_of(run, document.methods)}
            | means
            | _costs(run)
            | _changes(document.methods, run, {MAIN_METRIC: main_metric})
        )

    facts = document.dataset
    counts = f"{facts.queries} queries, {facts.documents} documents, {facts.relevant_pairs} relevant pairs"
    return Table.of(f"{facts.name}: {counts}", map(row, document.methods))


def _costs(run: MethodRun) -> dict[str, str]:
    """Time and space, where they were measured."""
    if run.query_ms is None or run.index_bytes is None:
        return {}
    return {"ms a query": f"{run.query_ms:.2f}", "index, MB": f"{run.index_bytes / 1e6:.2f}"}


def margins_table(document: Margins) -> Table:
    """Methods by margins and pair accuracy, with what INT8 loses and what later bundles gain."""
    figures = {"margin": stats.margins, "pair accuracy": stats.pair_accuracies}

    def row(scores: PairScoresOf) -> Cells:
        pairs = stats.with_negatives(scores)
        means = {
            "best positive": _mean([max(positives) for positives, _ in pairs]),
            "best negative": _mean([max(negatives) for _, negatives in pairs]),
        } | {what: _mean(values_of(scores)) for what, values_of in figures.items()}
        return {"": _name_of(scores, document.scores)} | means | _changes(document.scores, scores, figures)

    queries = f"{len(document.query_lines)} queries of {document.lines} lines"
    caption = f"{document.source}: {queries}, {len(document.bad_lines)} of them bad"
    return Table.of(caption, map(row, document.scores))


def _name_of(row: _R, rows: Sequence[_R]) -> str:
    """Variant and method, with the bundle where there are several."""
    is_alone = len({one.bundle for one in rows if one.bundle}) == 1
    return " ".join(filter(None, ("" if is_alone else row.bundle, row.variant, row.method)))


def _mean(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f}".replace("-", "−") if values else formats.NOTHING


def _changes(rows: Sequence[_R], row: _R, figures: Mapping[str, ValuesOf[_R]]) -> dict[str, Cell]:
    """What the row loses against FP32, and what it gains over the first bundle, in each figure."""
    first = next((one.bundle for one in rows if one.bundle), "")
    losses = {f"{_LOSS}{what}": _change(stats.loss(rows, row, of)) for what, of in figures.items()}
    gains = {f"{_GAIN}{what} over {first}": _change(stats.gain(rows, row, of)) for what, of in figures.items()}
    return losses | gains


def _change(found: Difference | None) -> Cell:
    """A loss or a gain with its interval; it stands out where it is clear."""
    if found is None:
        return Cell(formats.NOTHING)
    text = f"{formats.signed(found.mean)} [{formats.signed(found.low)}, {formats.signed(found.high)}]"
    return Cell(text, is_strong=found.is_clear)


def retrieval_notes(document: Retrieval) -> Iterable[str]:
    """How it was searched, and what was left out."""
    return (*(f"{what}: {how}" for what, how in document.settings.items()), *document.notes)


def margins_notes(document: Margins) -> Iterable[str]:
    """What was left out."""
    return (*document.notes, *(f"line {bad.line} was left out: {bad.reason}" for bad in document.bad_lines))
