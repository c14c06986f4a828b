"""The tables of retrieval and margins, with paired intervals. The report and the terminal show the same ones."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from m3_bench import formats, stats
from m3_bench.documents import Margins, MethodRun, PairScoresOf, Retrieval
from m3_bench.figures import Place
from m3_bench.report.page import NO_VALUE, Cell, Table
from m3_bench.stats import MAIN_METRIC, Difference

INTERVALS = (
    f"Brackets hold 95 % of {stats.RESAMPLES} paired bootstrap resamples of the queries; bold where 0 is outside. "
    "Losses are against FP32, same bundle and method; a loss below 0 is a gain."
)
MARGINS = (
    "The margin of a query is its best positive less its best negative; pair accuracy is the share of (positive, "
    "negative) pairs in the right order."
)


def main_metric(run: MethodRun) -> Sequence[float]:
    """The values that methods are ranked by."""
    return run.metrics.get(MAIN_METRIC, ())


def retrieval_table(document: Retrieval, place: Place) -> Table:
    """Methods by metrics, with what INT8 loses and what later bundles gain."""
    names = tuple(dict.fromkeys(name for run in document.methods for name in run.metrics))
    rows = []
    for number, run in enumerate(document.methods):
        below = place.below("methods", number, "metrics")
        values = ((run.metrics.get(name, ()), below.below(name)) for name in names)
        main = below.below(MAIN_METRIC)
        rows.append(
            (
                Cell(name_of(run, several_bundles=len(document.models) > 1)),
                *(_mean(found, where, "queries") for found, where in values),
                change(stats.loss(document.methods, run, main_metric), main),
                change(stats.gain(document.methods, run, main_metric), main),
            )
        )
    facts = document.dataset
    caption = (
        f"{facts.name}: {facts.queries} queries, {facts.documents} documents, {facts.relevant_pairs} relevant pairs"
    )
    head = ("", *names, f"loss of {MAIN_METRIC}", _over_first(document.methods, f"gain of {MAIN_METRIC}"))
    return Table(caption, head, tuple(rows)).pruned()


def margins_table(document: Margins, place: Place) -> Table:
    """Methods by margins and pair accuracy, with what INT8 loses and what later bundles gain."""
    best: tuple[Callable[[PairScoresOf], list[float]], ...] = (
        lambda scores: [max(positives) for positives, _ in stats.with_negatives(scores)],
        lambda scores: [max(negatives) for _, negatives in stats.with_negatives(scores)],
    )
    figures = (stats.margins, stats.pair_accuracies)
    several = len({scores.bundle for scores in document.scores}) > 1
    rows = []
    for number, scores in enumerate(document.scores):
        below = place.below("scores", number)
        means = (_mean(values_of(scores), below, "queries with negatives") for values_of in (*best, *figures))
        losses = (change(stats.loss(document.scores, scores, values_of), below) for values_of in figures)
        gains = (change(stats.gain(document.scores, scores, values_of), below) for values_of in figures)
        rows.append((Cell(name_of(scores, several_bundles=several)), *means, *losses, *gains))
    head = (
        *("", "best positive", "best negative", "margin", "pair accuracy", "loss of margin", "loss of pair accuracy"),
        *(_over_first(document.scores, f"gain of {what}") for what in ("margin", "pair accuracy")),
    )
    queries = f"{len(document.query_lines)} queries of {document.lines} lines"
    caption = f"{document.source}: {queries}, {len(document.bad_lines)} of them bad"
    return Table(caption, head, tuple(rows)).pruned()


def name_of(row: MethodRun | PairScoresOf, *, several_bundles: bool) -> str:
    """Variant and method, with the bundle where there are several."""
    return " ".join(filter(None, (row.bundle if several_bundles else "", row.variant, row.method)))


def _over_first(rows: Sequence[MethodRun] | Sequence[PairScoresOf], what: str) -> str:
    return f"{what} over {next((row.bundle for row in rows if row.bundle), '')}"


def _mean(values: Sequence[float], place: Place, what: str) -> Cell:
    if not values:
        return NO_VALUE
    return Cell(f"{fmean(values):.3f}".replace("-", "−"), place, f"mean of {len(values)} {what}")


def change(found: Difference | None, place: Place) -> Cell:
    """A loss or a gain with its interval; it stands out where it is clear."""
    if found is None:
        return NO_VALUE
    text = f"{formats.signed(found.mean)} [{formats.signed(found.low)}, {formats.signed(found.high)}]"
    return Cell(text, place, "paired bootstrap over queries", is_strong=found.is_clear)


def retrieval_notes(document: Retrieval) -> Iterable[str]:
    """How it was searched, and what was left out."""
    return (*(f"{what}: {how}" for what, how in document.settings.items()), *document.notes)


def margins_notes(document: Margins) -> Iterable[str]:
    """What was left out."""
    return (*document.notes, *(f"line {bad.line} was left out: {bad.reason}" for bad in document.bad_lines))
