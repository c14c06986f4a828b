"""The answer in a few sentences and figures, made of what is there; nothing is said of what is not."""

import math
from collections.abc import Iterator

from m3_bench import stats
from m3_bench.compare import machines, words
from m3_bench.compare.figures import Board, Figure
from m3_bench.report import cells
from m3_bench.report.choice import Choice, PlacedParity
from m3_bench.report.inputs import Inputs
from m3_bench.report.page import Cell, Tile
from m3_bench.report.sections import retrieval
from m3_bench.retrieval.stats import MAIN_METRIC

Sentence = tuple[Cell, ...]


def sentences(inputs: Inputs, choice: Choice) -> tuple[Sentence, ...]:
    """The summary."""
    found = [
        _speed(inputs, choice),
        _cost(inputs, choice),
        _parity(choice),
        _retrieval(inputs, choice),
        _peers(inputs, choice),
        _memory(inputs, choice),
    ]
    told = tuple(tuple(one) for one in found if one)
    return told or ((Cell("No runs were given, so there is no speed, cost or parity to sum up; see the tables."),),)


def tiles(inputs: Inputs, choice: Choice) -> tuple[Tile, ...]:
    """The figures that decide."""
    return tuple(_tiles(inputs, choice))


def doubts(inputs: Inputs, choice: Choice) -> tuple[str, ...]:
    """Why the figures may not be trusted: notes of the comparisons, and noise, the summary's own first."""
    board = inputs.board
    told = [note for comparison in inputs.comparisons for note in comparison.document.notes]
    compared = machines.distinct([who.placed.run.machine for who in board.whos if not who.placed.is_reference])
    if len(compared) > 1 and not any(note.startswith("Runs are of") for note in told):
        names = "; ".join(machines.described(machine) for machine in compared)
        told.append(f"Figures are of {len(compared)} machines ({names}): each says which.")
    return (*dict.fromkeys(told), *_noise(board))


def _noise(board: Board) -> Iterator[str]:
    """Each doubt once, with the figures that it is of."""
    found: dict[str, list[str]] = {}
    for one in board.figures:
        for doubt in one.doubts:
            found.setdefault(doubt, []).append(f"{one.who.label}, {one.scenario.title}")
    for doubt, places in found.items():
        more = f" and {len(places) - 2} more" if len(places) > 2 else ""
        yield f"{'; '.join(places[:2])}{more}: {doubt}."


def _pair(inputs: Inputs, choice: Choice, which: str) -> tuple[Figure | None, Figure | None]:
    """Ours and the reference's figure at the query or the load."""
    scenario = choice.query if which == "query" else choice.load
    return choice.at(inputs.board, scenario, choice.ours), choice.at(inputs.board, scenario, choice.reference)


def _speed(inputs: Inputs, choice: Choice) -> list[Cell]:
    if choice.ours is None:
        return []
    run = choice.ours.placed.run
    threads = f" with {run.threads} thread{'s' * (run.threads > 1)}" if run.threads else ""
    told = [Cell(f"On {choice.ours.machine}{threads}, "), Cell(choice.ours.label, is_strong=True)]
    clauses = [clause for clause in (_query_clause(inputs, choice), _load_clause(inputs, choice)) if clause]
    if not clauses:
        return []
    told += clauses[0]
    for clause in clauses[1:]:
        told += [Cell(" and"), *clause]
    return [*told, Cell(".")]


def _query_clause(inputs: Inputs, choice: Choice) -> list[Cell]:
    ours, reference = _pair(inputs, choice, "query")
    if ours is None:
        return []
    told = [
        Cell(f" encodes a text of {ours.scenario.tokens} tokens in "),
        _strong(cells.latency(ours, 50)),
        Cell(" (p50)"),
    ]
    if reference is not None:
        told += [Cell(" against "), cells.latency(reference, 50), Cell(f" for {reference.who.label}")]
    return told


def _load_clause(inputs: Inputs, choice: Choice) -> list[Cell]:
    ours, reference = _pair(inputs, choice, "load")
    if ours is None:
        return []
    told = [Cell(" does "), _strong(cells.speed(ours)), Cell(f" tokens/s at {ours.scenario.title}")]
    if reference is not None:
        share = ours.tokens_per_s.median / reference.tokens_per_s.median
        told += [
            Cell(" against "),
            cells.speed(reference),
            Cell(" ("),
            Cell(_of_it(share), ours.place, "median tokens/s of both, divided"),
            Cell(")"),
        ]
    return told


def _of_it(share: float) -> str:
    """How much of the reference's speed.

    >>> _of_it(0.0365), _of_it(2.0)
    ('3.6 % of it', '2.00 × as many')
    """
    return f"{words.share(share)} of it" if share < 1 else f"{words.times(share)} as many"


def _cost(inputs: Inputs, choice: Choice) -> list[Cell]:
    ours, reference = _pair(inputs, choice, "load")
    if ours is None or ours.cost_per_million_tokens is None:
        return []
    told = [Cell("A million tokens cost "), _strong(cells.cost(ours, inputs.currency))]
    if reference is None or reference.cost_per_million_tokens is None:
        return [*told, Cell(" on this machine, kept busy.")]
    told += [Cell(" against "), cells.cost(reference, inputs.currency)]
    if ours.cost_per_million_tokens > 0 and reference.cost_per_million_tokens > 0:
        told.append(Cell(f": {_cheaper(reference.cost_per_million_tokens / ours.cost_per_million_tokens)}"))
    return [*told, Cell(". "), *_fleet(ours, reference, inputs.currency)]


def _cheaper(ratio: float) -> str:
    """How costs compare.

    >>> _cheaper(2.0), _cheaper(0.5), _cheaper(1.01)
    ('2.00 × cheaper', '2.00 × dearer', 'as good as equal')
    """
    if 1 / 1.05 < ratio < 1.05:
        return "as good as equal"
    return f"{words.times(max(ratio, 1 / ratio))} {'cheaper' if ratio > 1 else 'dearer'}"


def _fleet(ours: Figure, reference: Figure, currency: str) -> Iterator[Cell]:
    """How many such machines do the work of the reference, and for how much."""
    count = math.ceil(reference.tokens_per_s.median / ours.tokens_per_s.median - 1e-9)
    price, theirs = ours.who.placed.price_per_hour, reference.who.placed.price_per_hour
    if count < 2 or price is None or theirs is None:
        return
    yield Cell(str(count), ours.place, "tokens/s of the reference ÷ ours, rounded up")
    yield Cell(
        f" such machines do what the reference does, for {words.money(count * price, currency)} an hour against "
        f"{words.price(theirs, currency)}."
    )


def _parity(choice: Choice) -> list[Cell]:
    parity = choice.parity
    if parity is None:
        return []
    told = [clause for clause in (_dense(parity), _colbert(parity), _sparse(parity)) if clause]
    sentence = [Cell(f"Against the vectors of {parity.reference} it keeps ")]
    for number, clause in enumerate(told):
        sentence += [*([Cell(", ")] if number else []), *clause]
    missing = [
        name for name, has in (("sparse", parity.compared.sparse), ("ColBERT", parity.compared.colbert)) if has is None
    ]
    gone = f"; {' and '.join(missing)} could not be compared" if missing else ""
    return [*sentence, Cell(f", over {len(parity.compared.texts.dense)} texts{gone}.")]


def _dense(one: PlacedParity) -> list[Cell]:
    dense = one.compared.dense
    if dense is None:
        return []
    return [
        Cell("a dense cosine of at least "),
        _strong(cells.likeness(dense.cosine_min, one.place, "dense/cosine_min")),
    ]


def _colbert(one: PlacedParity) -> list[Cell]:
    found = one.compared.colbert
    if found is None:
        return []
    return [
        Cell("a ColBERT cosine of "),
        _strong(cells.likeness(found.cosine_p5, one.place, "colbert/cosine_p5")),
        Cell(" at the 5th percentile"),
    ]


def _sparse(one: PlacedParity) -> list[Cell]:
    found = one.compared.sparse
    if found is None:
        return []
    return [
        Cell("a mean sparse Jaccard of "),
        _strong(cells.likeness(found.jaccard_mean, one.place, "sparse/jaccard_mean")),
    ]


def _retrieval(inputs: Inputs, choice: Choice) -> list[Cell]:
    """What the same variant of the same weights loses in retrieval."""
    if choice.ours is None or not choice.ours.is_ours:
        return []
    weights = choice.ours.placed.run.model.weights_sha256
    worst = retrieval.worst_loss(inputs, choice.ours.contender.name, weights)
    if worst is None:
        return []
    searched = f"{worst.datasets} labelled dataset{'s' * (worst.datasets > 1)}"
    return [
        Cell(f"Searching {searched} it loses at most "),
        _strong(worst.cell),
        Cell(f" of {MAIN_METRIC} against FP32 ({worst.where})."),
    ]


def _peers(inputs: Inputs, choice: Choice) -> list[Cell]:
    """The fastest other contender of the same run that is not ours."""
    ours, _ = _pair(inputs, choice, "load")
    if ours is None or choice.load is None:
        return []
    others = [
        one for one in inputs.board.at(choice.load.name) if one.who.placed == ours.who.placed and not one.who.is_ours
    ]
    if not others or not ours.who.is_ours:
        return []
    best = max(others, key=lambda one: one.tokens_per_s.median)
    found = stats.ratio(ours.tokens_per_s.values, best.tokens_per_s.values)
    return [
        Cell("On the same machine it does "),
        cells.ratio(found, best.place, is_strong=True),
        Cell(f" the tokens/s of {best.who.label}, the fastest of the others."),
    ]


def _memory(inputs: Inputs, choice: Choice) -> list[Cell]:
    ours, _ = _pair(inputs, choice, "load")
    if ours is None or not ours.peak_bytes:
        return []
    return [Cell("It took "), _strong(cells.memory(ours)), Cell(f" of memory at {ours.scenario.title}.")]


def _strong(cell: Cell) -> Cell:
    return Cell(cell.text, cell.place, cell.how, cell.is_doubtful, is_strong=True)


def _tiles(inputs: Inputs, choice: Choice) -> Iterator[Tile]:
    query, theirs = _pair(inputs, choice, "query")
    if query is not None:
        other = None if theirs is None else (cells.latency(theirs, 50), theirs.who.label)
        yield _tile(f"{query.scenario.tokens}-token text, p50", cells.latency(query, 50), other)
    load, theirs = _pair(inputs, choice, "load")
    if load is not None:
        other = None if theirs is None else (cells.speed(theirs), theirs.who.label)
        yield _tile("tokens per second", cells.speed(load), other)
    if load is not None and load.cost_per_million_tokens is not None:
        is_priced = theirs is not None and theirs.cost_per_million_tokens is not None
        other = (cells.cost(theirs, inputs.currency), theirs.who.label) if theirs is not None and is_priced else None
        yield _tile("per million tokens", cells.cost(load, inputs.currency), other)
    if choice.parity is not None and choice.parity.compared.dense is not None:
        lowest = choice.parity.compared.dense.cosine_min
        texts = Cell(f"{len(choice.parity.compared.texts.dense)} texts")
        value = cells.likeness(lowest, choice.parity.place, "dense/cosine_min")
        yield Tile("lowest dense cosine", value, "of", (texts,))
    if load is not None and load.peak_bytes:
        weights = load.who.contender.size_bytes
        yield Tile(
            "memory", cells.memory(load), "with", (Cell(f"{words.size(weights)} of weights"),) if weights else ()
        )


def _tile(label: str, value: Cell, other: tuple[Cell, str] | None) -> Tile:
    return Tile(label, value) if other is None else Tile(label, value, "against", (other[0], Cell(f"for {other[1]}")))
