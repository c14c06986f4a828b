"""A retrieval document as a Markdown table."""

from collections.abc import Iterator

from m3_bench.documents import Retrieval
from m3_bench.retrieval import stats
from m3_bench.retrieval.metrics import NAMES
from m3_bench.retrieval.stats import Difference


def in_words(document: Retrieval) -> str:
    """Title, table and notes."""
    return "\n".join([*_title(document), "", *_table(document), "", *_notes(document)])


def _title(document: Retrieval) -> Iterator[str]:
    facts = document.dataset
    yield (
        f"**{facts.name}** ({facts.layout}): {facts.queries} queries, {facts.documents} documents, "
        f"{facts.relevant_pairs} relevant pairs."
    )


def _table(document: Retrieval) -> Iterator[str]:
    has_gain = len(document.models) > 1
    first = next(iter(document.models))
    columns = ["bundle", "variant", "method", *NAMES, f"loss of {stats.MAIN_METRIC} to FP32"]
    columns += [f"gain over {first}"] if has_gain else []
    yield line(columns)
    yield line(["---"] * 3 + ["---:"] * (len(columns) - 3))
    for run in document.methods:
        cells = [run.bundle or "–", run.variant or "–", run.method]
        cells += [f"{stats.mean(run.metrics[name]):.3f}" for name in NAMES]
        cells.append(in_brackets(stats.loss(document.methods, run)))
        yield line(cells + ([in_brackets(stats.gain(document.methods, run))] if has_gain else []))


def _notes(document: Retrieval) -> Iterator[str]:
    yield (
        f"Brackets: 95 % of {stats.RESAMPLES} paired bootstrap resamples of the queries; **bold** where 0 is outside. "
        "A loss below 0 is a gain."
    )
    yield ""
    yield from (f"* {what}: {how}" for what, how in document.settings.items())
    yield from (f"* {note}" for note in document.notes)


def in_brackets(difference: Difference | None) -> str:
    """A difference with its interval; a dash for none."""
    if difference is None:
        return "–"
    text = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    return f"**{text}**" if difference.is_clear else text


def line(cells: list[str]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
