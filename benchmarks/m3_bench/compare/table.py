"""A comparison as Markdown for the terminal."""

from collections.abc import Iterator, Sequence

from m3_bench.compare import words
from m3_bench.compare.figures import Board, Figure, Place, Who, board, runs_of
from m3_bench.documents import Compared, Comparison

_PARITY = (
    "| variant | dense cosine, mean | lowest | sparse Jaccard, mean | lowest | same top 5 | ColBERT cosine, mean | "
    "5th percentile | lowest |\n|---|---|---|---|---|---|---|---|---|"
)
_SPEED = (
    "| contender | machine | p50 | p95 | p99 | tokens/s | per core | interval | texts/s | × reference | CPU-s per M "
    "tokens | cost per M tokens | doubts |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def in_words(comparison: Comparison) -> str:
    """The whole comparison."""
    figures = board(runs_of(comparison, Place("comparison", "")))
    return "\n".join([*_head(comparison), *_parity(comparison, figures), *_speeds(comparison, figures)])


def _head(comparison: Comparison) -> Iterator[str]:
    texts = max((len(one.texts.dense) for one in comparison.parity), default=0)
    names = ", ".join(contender.name for contender in comparison.reference.contenders)
    yield f"# {comparison.reference.model.name}: {names} and {len(comparison.runs)} run(s), {texts} texts\n"
    yield from (f"* {note}" for note in comparison.notes)


def _parity(comparison: Comparison, figures: Board) -> Iterator[str]:
    if not comparison.parity:
        return
    yield f"\n## Parity with the reference\n\n{_PARITY}"
    for one in comparison.parity:
        dense, sparse, colbert = one.dense, one.sparse, one.colbert
        cells = [
            label_of(one, figures.whos),
            *([dense.cosine_mean, dense.cosine_min] if dense else [None] * 2),
            *([sparse.jaccard_mean, sparse.jaccard_min] if sparse else [None] * 2),
            words.share(sparse.top5_same_near_ties_aside if sparse else None),
            *([colbert.cosine_mean, colbert.cosine_p5, colbert.cosine_min] if colbert else [None] * 3),
        ]
        yield _row(cell if isinstance(cell, str) else words.likeness(cell) for cell in cells)


def label_of(one: Compared, whos: Sequence[Who]) -> str:
    """What the others call the contender of a parity."""
    labels = (who.label for who in whos if who.placed.number == one.run and who.contender.name == one.contender)
    return next(labels, one.contender)


def _speeds(comparison: Comparison, figures: Board) -> Iterator[str]:
    doubts: list[str] = []
    for scenario in figures.scenarios:
        found = figures.at(scenario.name)
        reference = next((one for one in found if one.who.placed.is_reference), None)
        yield f"\n## {words.one_line(scenario.title)}\n\n{_SPEED}"
        for figure in found:
            marks = [_mark(doubt, doubts) for doubt in _doubts(figure)]
            yield _row(_speed_cells(figure, reference, comparison.prices.currency, ", ".join(marks)))
    if doubts:
        yield "\nDoubts:\n"
        yield from (f"{number}. {doubt}" for number, doubt in enumerate(doubts, 1))
    if figures.gaps:
        yield "\nNot measured:\n"
        yield from (f"* {gap.who.label}, {gap.scenario}: {words.one_line(gap.reason)}" for gap in figures.gaps)


def _speed_cells(figure: Figure, reference: Figure | None, currency: str, marks: str) -> Iterator[str]:
    speed, latency = figure.tokens_per_s, figure.latency
    yield words.one_line(figure.who.label)
    yield words.one_line(figure.who.machine)
    yield from (words.seconds(value) for value in (latency.p50_s, latency.p95_s, latency.p99_s))
    yield words.number(speed.median)
    threads = figure.who.placed.run.threads
    yield words.number(speed.median / threads) if threads else "–"
    yield f"{words.number(speed.low)} … {words.number(speed.high)}"
    yield words.number(figure.texts_per_s.median)
    yield "–" if reference is None else words.times(speed.median / reference.tokens_per_s.median)
    yield words.number(figure.cpu_s_per_million_tokens)
    yield words.money(figure.cost_per_million_tokens, currency)
    yield marks


def _doubts(figure: Figure) -> tuple[str, ...]:
    too_few = figure.latency.too_few
    return (*figure.doubts, *((too_few,) if too_few else ()))


def _mark(doubt: str, doubts: list[str]) -> str:
    if doubt not in doubts:
        doubts.append(doubt)
    return str(doubts.index(doubt) + 1)


def _row(cells: Iterator[str] | Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
