"""Which contender, reference and scenarios the summary speaks of."""

from collections.abc import Sequence
from dataclasses import dataclass

from m3_bench.compare.figures import Board, Figure, Place, Who
from m3_bench.documents import Compared, Scenario
from m3_bench.report.inputs import Inputs

REFERENCE_NUMBER = 7


@dataclass(frozen=True)
class PlacedParity:
    """A contender's parity, where it stands, and what it is called elsewhere on the page."""

    label: str
    number: int
    compared: Compared
    place: Place
    reference: str


@dataclass(frozen=True)
class Choice:
    """What decides: our fastest variant that has parity, the reference, a query, and the heaviest call without clients.

    Attributes:
        ours: None if nothing was measured.
        reference: None without one.
        query: the shortest single text; None if nobody was measured at it.
        load: the call with the most tokens that most contenders were measured at; None likewise.
        parity: of `ours`; None without a comparison.
    """

    ours: Who | None
    reference: Who | None
    query: Scenario | None
    load: Scenario | None
    parity: PlacedParity | None

    def at(self, board: Board, scenario: Scenario | None, who: Who | None) -> Figure | None:
        """Somebody's figure at a scenario; None if there is none."""
        if scenario is None or who is None:
            return None
        return next((one for one in board.at(scenario.name) if one.who.label == who.label), None)


def choose(inputs: Inputs) -> Choice:
    """Choose."""
    board = inputs.board
    whole = _with_all_heads(board.scenarios)
    query = min((s for s in whole if is_single(s)), key=lambda s: s.tokens, default=None)
    loads = [s for s in whole if s.clients == 1 and len(s.lengths) > 1 and len(set(s.lengths)) == 1] or [
        s for s in whole if s.clients == 1
    ]
    load = max(loads, key=lambda s: (len(board.at(s.name)), s.tokens), default=None)
    parities = all_parity(inputs)
    ours = _ours(board, load, {one.label for one in parities})
    reference = next((who for who in board.whos if who.placed.is_reference), None)
    parity = next((one for one in parities if ours is not None and one.label == ours.label), None)
    return Choice(ours, reference, query, load, parity)


def is_single(scenario: Scenario) -> bool:
    """Whether it is one text by one caller."""
    return len(scenario.lengths) == 1 and scenario.clients == 1


def _with_all_heads(scenarios: Sequence[Scenario]) -> list[Scenario]:
    """Those with the most heads, so that a dense-only call is not held against a whole one."""
    most = max((len(s.heads) for s in scenarios), default=0)
    return [s for s in scenarios if len(s.heads) == most]


def all_parity(inputs: Inputs) -> tuple[PlacedParity, ...]:
    """Parity of every comparison."""
    found = []
    for comparison in inputs.comparisons:
        names = ", ".join(contender.name for contender in comparison.document.reference.contenders)
        for number, one in enumerate(comparison.document.parity):
            run = comparison.document.runs[one.run] if 0 <= one.run < len(comparison.document.runs) else None
            who = next(
                (w for w in inputs.board.whos if w.placed.run == run and w.contender.name == one.contender), None
            )
            label = one.contender if who is None else who.label
            place = comparison.place.below("parity", number)
            found.append(PlacedParity(label, number_of(inputs.board, label), one, place, names))
    return tuple(found)


def number_of(board: Board, label: str) -> int:
    """A contender's number, which gives it its colour, the same in every chart; references have one of their own."""
    others = [who.label for who in board.whos if not who.placed.is_reference]
    if label in others:
        return others.index(label)
    return REFERENCE_NUMBER if any(who.label == label for who in board.whos) else len(others)


def _ours(board: Board, load: Scenario | None, with_parity: set[str]) -> Who | None:
    ours = [who for who in board.whos if who.is_ours] or [who for who in board.whos if not who.placed.is_reference]
    known = [who for who in ours if who.label in with_parity] or ours
    speeds = {one.who.label: one.tokens_per_s.median for one in (board.at(load.name) if load else ())}
    return max(known, key=lambda who: speeds.get(who.label, 0.0), default=None)
