"""Figures as cells: the number, where its raw values stand, and how it came from them."""

from collections.abc import Sequence

from m3_bench.compare import words
from m3_bench.compare.figures import Figure, Place
from m3_bench.report.page import NOTHING, Cell
from m3_bench.stats import Interval


def latency(figure: Figure, percent: int, *, is_strong: bool = False) -> Cell:
    """A percentile of single calls."""
    found = figure.latency
    value = {50: found.p50_s, 95: found.p95_s, 99: found.p99_s}[percent]
    if value is None:
        return Cell("–", figure.place, found.too_few)
    how = f"p{percent} of {found.calls} calls in {len(figure.measured.rounds)} rounds{_doubt(figure)}"
    return Cell(words.seconds(value), figure.place, how, bool(figure.doubts), is_strong)


def speed(figure: Figure, *, is_strong: bool = False) -> Cell:
    """Tokens per second, the median over rounds."""
    how = f"median of rounds: {_rounds(figure.tokens_per_s.values)} tokens/s{_doubt(figure)}"
    return Cell(words.number(figure.tokens_per_s.median), figure.place, how, bool(figure.doubts), is_strong)


def speed_per_core(figure: Figure) -> Cell:
    """Tokens per second of each thread; a thread has a core of its own."""
    threads = figure.who.placed.run.threads
    if not threads:
        return NOTHING
    how = f"{words.number(figure.tokens_per_s.median)} tokens/s ÷ {threads} threads"
    return Cell(words.number(figure.tokens_per_s.median / threads), figure.place, how, bool(figure.doubts))


def texts(figure: Figure) -> Cell:
    """Texts per second, the median over rounds."""
    how = f"median of rounds: {_rounds(figure.texts_per_s.values)} texts/s{_doubt(figure)}"
    return Cell(words.number(figure.texts_per_s.median), figure.place, how, bool(figure.doubts))


def spread(figure: Figure) -> Cell:
    """The interval of the median."""
    found = figure.tokens_per_s
    text = f"{words.number(found.low)} … {words.number(found.high)}"
    return Cell(text, figure.place, f"holds the true median in {words.percent(found.coverage)} of cases")


def cpu_time(figure: Figure) -> Cell:
    """Processor seconds for a million tokens."""
    if figure.cpu_s_per_million_tokens is None:
        return NOTHING
    return Cell(words.number(figure.cpu_s_per_million_tokens), figure.place, "cpu_s ÷ tokens, median of rounds")


def cost(figure: Figure, currency: str) -> Cell:
    """What a million tokens cost."""
    price = figure.who.placed.price_per_hour
    if price is None or figure.cost_per_million_tokens is None:
        return NOTHING
    how = f"{words.price(price, currency)} an hour ÷ {words.number(figure.tokens_per_s.median)} tokens/s"
    return Cell(words.money(figure.cost_per_million_tokens, currency), figure.place, how, bool(figure.doubts))


def memory(figure: Figure) -> Cell:
    """The most memory in a scenario."""
    if not figure.peak_bytes:
        return NOTHING
    where = "on the accelerator" if figure.who.placed.run.machine.accelerator else "resident"
    return Cell(words.size(figure.peak_bytes), figure.place, f"peak_bytes, the highest of the rounds, {where}")


def ratio(found: Interval, place: Place, *, is_strong: bool = False) -> Cell:
    """A ratio within rounds, with its interval."""
    text = f"{words.times(found.median)} ({words.number(found.low)} … {words.number(found.high)})"
    return Cell(text, place, f"median of the ratios within rounds: {_rounds(found.values)}", is_strong=is_strong)


def likeness(value: float | None, place: Place, key: str, how: str = "", *, is_strong: bool = False) -> Cell:
    """A cosine or a Jaccard index of a parity."""
    if value is None:
        return NOTHING
    return Cell(words.likeness(value), place.below(*key.split("/")), how, is_strong=is_strong)


def _rounds(values: Sequence[float]) -> str:
    shown = ", ".join(words.number(value) for value in values[:10])
    return f"{shown}, …" if len(values) > 10 else shown


def _doubt(figure: Figure) -> str:
    return f"; doubtful: {'; '.join(figure.doubts)}" if figure.doubts else ""
