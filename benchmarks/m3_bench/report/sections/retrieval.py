"""What the vectors find on labelled data."""

from collections.abc import Iterator

from m3_bench.compare import words
from m3_bench.compare.figures import Place
from m3_bench.compare.machines import described
from m3_bench.documents import MethodRun
from m3_bench.report import plots
from m3_bench.report.inputs import Inputs, PlacedRetrieval
from m3_bench.report.page import NOTHING, Cell, Picture, Section, Table
from m3_bench.report.plots import Axis, Bar
from m3_bench.retrieval import stats
from m3_bench.retrieval.stats import Difference

_MAIN = stats.MAIN_METRIC
_MOST_BARS = 24


def section(inputs: Inputs) -> Section | None:
    """Each dataset's table; None without retrieval documents."""
    if not inputs.retrievals:
        return None
    pictures = [_bars(number, one) for number, one in enumerate(inputs.retrievals, 1)]
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
    bundle = run.bundle if len(one.document.models) > 1 else ""
    return " ".join(part for part in (bundle, run.variant, run.method) if part)


def _mean(run: MethodRun, name: str, one: PlacedRetrieval, number: int) -> Cell:
    if name not in run.metrics:
        return NOTHING
    place = one.place.below("methods", number, "metrics", name)
    return Cell(f"{stats.mean(run.metrics[name]):.3f}", place, f"mean of {len(run.metrics[name])} queries")


def change(found: Difference | None, place: Place) -> Cell:
    """A loss or a gain with its interval; strong where it is clear."""
    if found is None:
        return NOTHING
    text = f"{found.mean:+.3f} ({found.low:+.3f} … {found.high:+.3f})".replace("-", "−")
    return Cell(text, place, "paired bootstrap over queries", is_strong=found.is_clear)


def _bars(number: int, one: PlacedRetrieval) -> Picture:
    """The main metric of every method, best first; a colour for each variant."""
    document = one.document
    variants = list(dict.fromkeys((run.bundle, run.variant) for run in document.methods))
    found = [
        Bar(name, variants.index((run.bundle, run.variant)), mean, f"{name}: {mean:.3f}", f"{mean:.3f}")
        for run in document.methods
        if _MAIN in run.metrics
        for name, mean in ((_name(run, one), stats.mean(run.metrics[_MAIN])),)
    ]
    found = sorted(found, key=lambda bar: -bar.value)[:_MOST_BARS]
    title = f"{_MAIN} on {document.dataset.name}"
    caption = "A colour is a variant. Higher is better."
    told = f"{caption} {'; '.join(bar.told for bar in found)}."
    return Picture(
        f"retrieval-{number}",
        title,
        caption,
        plots.bars(f"retrieval-{number}", title, told, found, Axis(_MAIN, lambda value: f"{value:g}")),
    )


def _notes(inputs: Inputs) -> Iterator[str]:
    for one in inputs.retrievals:
        document = one.document
        models = ", ".join(f"{bundle} ({model.name})" for bundle, model in document.models.items())
        yield f"{document.dataset.name}: {models}, on {described(document.machine)}."
        yield from (f"{document.dataset.name}: {note}" for note in document.notes)
