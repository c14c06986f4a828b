"""From raw values to a verdict. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Turn:
    """What a contender did in one turn.

    Attributes:
        seconds: of each batch.
        work: tokens of each batch (of a multiplication FLOP, of a start 1).
        resident_bytes: its resident memory after the turn.
        peak_bytes: the most that has been since its process began.
    """

    seconds: tuple[float, ...]
    work: tuple[float, ...]
    resident_bytes: int
    peak_bytes: int

    @property
    def speeds(self) -> tuple[float, ...]:
        """Work per second of each batch.

        >>> Turn((2.0, 4.0), (100.0, 100.0), 0, 0).speeds
        (50.0, 25.0)
        """
        return tuple(work / seconds for work, seconds in zip(self.work, self.seconds, strict=True))


@dataclass(frozen=True)
class Figure:
    """A measured figure: at its best, and in the middle."""

    best: float
    median: float


def speed_ratio(ours: Sequence[Turn], theirs: Sequence[Turn]) -> Figure:
    """How many times as fast we are.

    `median` is the median over rounds of the ratio within the round (median speed of our turn by that of theirs), so a
    machine that slows down slows both. `best` is our fastest batch by their fastest.

    >>> speed_ratio([Turn((1.0,), (8.0,), 0, 0)], [Turn((4.0,), (8.0,), 0, 0)])
    Figure(best=4.0, median=4.0)
    """
    rounds = [_speed(our) / _speed(their) for our, their in zip(ours, theirs, strict=True)]
    return Figure(_fastest(ours) / _fastest(theirs), median(rounds))


def throughput_ratio(ours: Sequence[Turn], theirs: Sequence[Turn]) -> Figure:
    """How many times as much we do in the same time, all batches of a turn together.

    >>> throughput_ratio([Turn((1.0,), (8.0,), 0, 0)], [Turn((1.0, 3.0), (4.0, 4.0), 0, 0)])
    Figure(best=4.0, median=4.0)
    """
    rounds = [_throughput(our) / _throughput(their) for our, their in zip(ours, theirs, strict=True)]
    return Figure(max(map(_throughput, ours)) / max(map(_throughput, theirs)), median(rounds))


def regret(ours: Sequence[Turn], others: Sequence[Sequence[Turn]], weights: Sequence[float]) -> Figure:
    """Our time by that of the fastest of all, ourselves included.

    A turn's batches are shapes, and its time is the weighted sum of their times, each in parts of ours.

    Args:
        ours: our turns.
        others: those of everybody who counts, round by round with ours.
        weights: of the shapes, 1 together.

    >>> ours, half = [Turn((2.0, 8.0), (1, 1), 0, 0)], [Turn((1.0, 4.0), (1, 1), 0, 0)]
    >>> regret(ours, [half], (0.5, 0.5))
    Figure(best=2.0, median=2.0)
    """

    def parts(turn: Turn, mine: Turn) -> float:
        shapes = zip(weights, turn.seconds, mine.seconds, strict=True)
        return sum(weight * theirs / our for weight, theirs, our in shapes)

    found = [[parts(turn, mine) for turn, mine in zip(turns, ours, strict=True)] for turns in others]
    best = [
        sum(w * min(t) / min(m) for w, t, m in zip(weights, _columns(turns), _columns(ours), strict=True))
        for turns in others
    ]
    return Figure(1 / min([1.0, *best]), 1 / min([1.0, *map(median, found)]))


def _columns(turns: Sequence[Turn]) -> list[tuple[float, ...]]:
    """Seconds by batch instead of by turn."""
    return list(zip(*(turn.seconds for turn in turns), strict=True))


def ceiling_share(ours: Sequence[Turn], ceilings: Sequence[Sequence[Turn]], flop_per_token: float) -> Figure:
    """The share of the fastest multiplication that encoding reaches; of several ceilings the highest counts.

    Args:
        ours: turns whose work is tokens.
        ceilings: per engine, turns whose work is FLOP; at least one engine.
        flop_per_token: see `flop_per_token`.
    """
    rounds = [
        _speed(our) * flop_per_token / max(map(_speed, products))
        for our, *products in zip(ours, *ceilings, strict=True)
    ]
    return Figure(_fastest(ours) * flop_per_token / max(map(_fastest, ceilings)), median(rounds))


def memory(byte_counts: Sequence[int]) -> Figure:
    """Bytes at their lowest and in the middle.

    >>> memory([3, 1, 2])
    Figure(best=1.0, median=2.0)
    """
    return Figure(float(min(byte_counts)), float(median(byte_counts)))


def flop_per_token(layers: int, hidden: int, ffn: int) -> float:
    """Multiplications and additions of one token in the encoder's projections; attention itself is not counted.

    >>> flop_per_token(24, 1024, 4096)  # XLM-R large
    603979776.0
    """
    return 2.0 * layers * (4 * hidden * hidden + 2 * hidden * ffn)


def median_speed(turns: Sequence[Turn]) -> float:
    """Work per second, the median over rounds."""
    return median(map(_speed, turns))


def median_seconds(turns: Sequence[Turn]) -> float:
    """Seconds of a batch, the median over all batches of all rounds."""
    return median(seconds for turn in turns for seconds in turn.seconds)


def median_speeds(turns: Sequence[Turn]) -> tuple[float, ...]:
    """Work per second of each batch, the median over rounds.

    >>> median_speeds([Turn((1.0, 2.0), (8.0, 8.0), 0, 0), Turn((1.0, 4.0), (8.0, 8.0), 0, 0)])
    (8.0, 3.0)
    """
    return tuple(map(median, zip(*(turn.speeds for turn in turns), strict=True)))


def median_throughput(turns: Sequence[Turn]) -> float:
    """Work of all batches of a turn by their time, the median over rounds."""
    return median(map(_throughput, turns))


def _throughput(turn: Turn) -> float:
    return sum(turn.work) / sum(turn.seconds)


def _speed(turn: Turn) -> float:
    return median(turn.speeds)


def _fastest(turns: Sequence[Turn]) -> float:
    return max(speed for turn in turns for speed in turn.speeds)
