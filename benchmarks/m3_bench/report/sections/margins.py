"""How far positives stand above negatives on fine-tuning lines."""

from collections.abc import Iterator

from m3_bench.documents import PairScoresOf
from m3_bench.margins import stats
from m3_bench.report.inputs import Inputs, PlacedMargins
from m3_bench.report.page import NOTHING, Cell, Section, Table
from m3_bench.report.sections.retrieval import change

_HEAD = ("", "mean margin", "pair accuracy", "loss of margin", "loss of accuracy")
_GAINS = ("gain of margin", "gain of accuracy")
_FIGURES: tuple[stats.Figure, ...] = (stats.margins, stats.pair_accuracies)


def section(inputs: Inputs) -> Section | None:
    """Each file's table; None without margins documents."""
    if not inputs.margins:
        return None
    return Section(
        anchor="margins",
        title="Margins on fine-tuning lines",
        intro=(
            "The margin of a query is its best positive less its best negative; pair accuracy is the share of "
            "(positive, negative) pairs in the right order. Losses are against FP32, gains over the first bundle, with "
            "95 % intervals of a paired bootstrap; bold where they leave 0 out."
        ),
        tables=tuple(_table(one) for one in inputs.margins),
        notes=tuple(_notes(inputs)),
    )


def _table(one: PlacedMargins) -> Table:
    document = one.document
    has_gain = len({scores.bundle for scores in document.scores}) > 1
    rows = tuple(_row(one, number, scores, has_gain=has_gain) for number, scores in enumerate(document.scores))
    caption = f"{document.source}: {len(document.query_lines)} queries of {document.lines} lines"
    return Table(caption, (*_HEAD, *(_GAINS if has_gain else ())), rows)


def _row(one: PlacedMargins, number: int, scores: PairScoresOf, *, has_gain: bool) -> tuple[Cell, ...]:
    everything, place = one.document.scores, one.place.below("scores", number)
    cells = [Cell(" ".join((scores.bundle, scores.variant, scores.method)))]
    for figure, digits in ((stats.margins, "+.4f"), (stats.pair_accuracies, ".3f")):
        values = figure(scores)
        mean = stats.mean(values)
        how = f"mean of {len(values)} queries with negatives"
        cells.append(NOTHING if mean is None else Cell(f"{mean:{digits}}".replace("-", "−"), place, how))
    cells += [change(stats.loss(everything, scores, figure), place) for figure in _FIGURES]
    if has_gain:
        cells += [change(stats.gain(everything, scores, figure), place) for figure in _FIGURES]
    return tuple(cells)


def _notes(inputs: Inputs) -> Iterator[str]:
    for one in inputs.margins:
        document = one.document
        if bad := document.bad_lines:
            yield f"{document.source}: lines left out: {len(bad)}; the first is line {bad[0].line}: {bad[0].reason}"
        yield from (f"{document.source}: {note}" for note in document.notes)
