"""From raw values to a verdict. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median


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


def regret(ours: Sequence[Turn], others: Sequence[Sequence[Turn]]) -> Figure:
    """Our time by that of the fastest of all, ourselves included; each turn's batches are the same shapes.

    A turn's time is the geometric mean of its shapes' times, so that a short text counts as much as a large batch.

    >>> regret([Turn((2.0, 8.0), (1, 1), 0, 0)], [[Turn((1.0, 4.0), (1, 1), 0, 0)], [Turn((4.0, 9.0), (1, 1), 0, 0)]])
    Figure(best=2.0, median=2.0)
    """
    everybody = [[geometric_mean(turn.seconds) for turn in turns] for turns in (ours, *others)]
    fastest = min(everybody[1:] or everybody, key=median)  # one and the same in all rounds
    rounds = [mine / min(mine, theirs) for mine, theirs in zip(everybody[0], fastest, strict=True)]
    return Figure(min(everybody[0]) / min(map(min, everybody)), median(rounds))


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
