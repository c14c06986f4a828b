"""A margins document as a Markdown table."""

from collections.abc import Iterator

from m3_bench.documents import Margins
from m3_bench.margins import stats
from m3_bench.retrieval.stats import RESAMPLES
from m3_bench.retrieval.table import in_brackets, line

_COLUMNS = ("bundle", "variant", "method", "best positive", "best negative", "margin", "pair accuracy")
_AGAINST = ("margin", "pair accuracy")
_FIGURES: tuple[stats.Figure, ...] = (stats.margins, stats.pair_accuracies)


def in_words(document: Margins) -> str:
    """Title, table, notes and bad lines."""
    return "\n".join([*_title(document), "", *_table(document), "", *_notes(document)])


def _title(document: Margins) -> Iterator[str]:
    yield (
        f"**{document.source}**: {document.lines} lines, {len(document.bad_lines)} of them bad; "
        f"{len(document.query_lines)} queries scored."
    )


def _table(document: Margins) -> Iterator[str]:
    first = document.scores[0].bundle
    has_gain = any(one.bundle != first for one in document.scores)
    columns = [*_COLUMNS, *(f"loss of {what} to FP32" for what in _AGAINST)]
    columns += [f"gain of {what} over {first}" for what in _AGAINST] if has_gain else []
    yield line(columns)
    yield line(["---"] * 3 + ["---:"] * (len(columns) - 3))
    for one in document.scores:
        cells = [one.bundle, one.variant, one.method]
        cells += [_number(stats.mean(f(one))) for f in (stats.best_positives, stats.best_negatives, *_FIGURES)]
        cells += [in_brackets(stats.loss(document.scores, one, figure)) for figure in _FIGURES]
        if has_gain:
            cells += [in_brackets(stats.gain(document.scores, one, figure)) for figure in _FIGURES]
        yield line(cells)


def _notes(document: Margins) -> Iterator[str]:
    yield (
        "Means over queries. Margin: best positive less best negative. Pair accuracy: share of (positive, negative) "
        "pairs in the right order."
    )
    yield f"Brackets: 95 % of {RESAMPLES} paired bootstrap resamples of the queries; **bold** where 0 is outside."
    yield ""
    yield from (f"* {note}" for note in document.notes)
    yield from (f"* line {bad.line} was left out: {bad.reason}" for bad in document.bad_lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
