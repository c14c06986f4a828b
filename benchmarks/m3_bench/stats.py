"""From the raw values of a run to figures: pure functions, nothing is timed here.

A round is one contender's turn. Contenders take turns, so two of one run are compared within rounds: what slowed the
machine slowed both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

from m3_bench.documents import Ceiling, Round, Scenario

WANTED_COVERAGE = 0.9
"""An interval of the median holds the true one this often, if there are rounds enough: five are."""
NOISY_VARIATION = 0.05
"""Standard deviation between rounds ÷ their mean from which a figure is called noisy."""
DRIFT = 0.05
"""Change from the first to the last third of the rounds from which it is called a drift, if it is steady."""
STEADY = 0.6
"""Kendall's tau of the rounds against their order from which a change is steady."""
FEWEST_ROUNDS = 3
TOKENS_PER_PRICE = 1e6
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Interval:
    """The median over rounds, the best round, and the order statistics between which the true median lies.

    Attributes:
        median: over rounds.
        best: the highest round.
        low: lower end.
        high: upper end.
        coverage: how often such an interval holds the true median, whatever the distribution; 0 with one round.
        values: of each round.
    """

    median: float
    best: float
    low: float
    high: float
    coverage: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Latency:
    """Percentiles of single calls, in seconds; None where there are too few calls to tell it from the slowest."""

    calls: int
    p50_s: float
    p95_s: float | None
    p99_s: float | None

    @property
    def too_few(self) -> str:
        """Which percentiles cannot be told, and how many calls would do; empty if all can.

        >>> Latency(60, 0.1, 0.2, None).too_few
        'p99 needs 100 calls, there are 60'
        """
        missing = [(95, self.p95_s), (99, self.p99_s)]
        told = [f"p{p} needs {calls_for(p)} calls" for p, value in missing if value is None]
        return f"{', '.join(told)}, there are {self.calls}" if told else ""


def calls_for(percent: int) -> int:
    """Fewest calls for a percentile: one of them lies above it, so that it is more than the slowest call.

    >>> [calls_for(p) for p in (50, 95, 99)]
    [2, 20, 100]
    """
    return math.ceil(100 / (100 - percent))


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile, linear between neighbours.

    >>> percentile([4.0, 1.0, 2.0, 3.0], 50)
    2.5
    """
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def latency(rounds: Sequence[Round]) -> Latency:
    """Of all calls of all rounds; at least one."""
    calls = [seconds for one in rounds for seconds in one.seconds]

    def told(percent: int) -> float | None:
        return percentile(calls, percent) if len(calls) >= calls_for(percent) else None

    return Latency(len(calls), percentile(calls, 50), told(95), told(99))


def busy_s(one: Round, clients: int) -> float:
    """Seconds that a round's calls took together: their sum, or with several clients the time on the clock."""
    return one.wall_s if clients > 1 else sum(one.seconds)


def tokens_per_s(rounds: Sequence[Round], scenario: Scenario) -> Interval:
    """Tokens per second of each round; at least one."""
    return interval([len(r.seconds) * scenario.tokens / busy_s(r, scenario.clients) for r in rounds])


def texts_per_s(rounds: Sequence[Round], scenario: Scenario) -> Interval:
    """Texts per second of each round; at least one."""
    return interval([len(r.seconds) * len(scenario.lengths) / busy_s(r, scenario.clients) for r in rounds])


def interval(values: Sequence[float]) -> Interval:
    """Median, best, and the narrowest order-statistic interval of the median that holds it often enough.

    Where even the lowest and the highest do not, it is these two.

    The k-th lowest to the k-th highest of n values hold the true median with probability 1 - 2 P(Binomial(n, ½) < k).

    >>> interval([5.0, 1.0, 2.0, 3.0, 4.0])
    Interval(median=3.0, best=5.0, low=1.0, high=5.0, coverage=0.9375, values=(5.0, 1.0, 2.0, 3.0, 4.0))
    """
    ordered, count = sorted(values), len(values)
    rank = 1
    while rank < count / 2 and _coverage(count, rank + 1) >= WANTED_COVERAGE:
        rank += 1
    return Interval(
        median(ordered), ordered[-1], ordered[rank - 1], ordered[-rank], _coverage(count, rank), tuple(values)
    )


def _coverage(count: int, rank: int) -> float:
    below = sum(math.comb(count, k) for k in range(rank)) / 2**count
    return max(0.0, 1 - 2 * below)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Round by round, ours ÷ theirs; rounds that only one of them has are left out.

    >>> ratio([2.0, 6.0, 4.0], [1.0, 2.0, 2.0, 9.0]).median
    2.0
    """
    return interval([a / b for a, b in zip(ours, theirs, strict=False)])


def cpu_s_per_million_tokens(rounds: Sequence[Round], scenario: Scenario) -> float | None:
    """Processor seconds for 10⁶ tokens, the median over rounds; None where the system does not say."""
    if any(one.cpu_s <= 0 for one in rounds):
        return None
    return median(one.cpu_s / (len(one.seconds) * scenario.tokens) for one in rounds) * TOKENS_PER_PRICE


def cost_per_million_tokens(price_per_hour: float, speed_tokens_per_s: float) -> float:
    """What 10⁶ tokens cost on a machine that is kept busy.

    >>> cost_per_million_tokens(3.6, 1000.0)
    1.0
    """
    return price_per_hour / (speed_tokens_per_s * SECONDS_PER_HOUR) * TOKENS_PER_PRICE


def variation(values: Sequence[float]) -> float:
    """Standard deviation ÷ mean; 0 for one value.

    >>> round(variation([9.0, 10.0, 11.0]), 3)
    0.1
    """
    return stdev(values) / mean(values) if len(values) > 1 else 0.0


def drift(values: Sequence[float]) -> float:
    """Steady change from the first third of the rounds to the last; 0 where it is not steady or the rounds are few.

    >>> [round(drift(values), 2) for values in ([100.0, 96.0, 93.0, 90.0], [100.0, 90.0, 100.0, 90.0], [2.0, 1.0])]
    [-0.1, 0.0, 0.0]
    """
    if len(values) <= FEWEST_ROUNDS or abs(_kendall(values)) < STEADY:
        return 0.0
    third = max(1, len(values) // 3)
    return median(values[-third:]) / median(values[:third]) - 1


def _kendall(values: Sequence[float]) -> float:
    pairs = [(a, b) for i, a in enumerate(values) for b in values[i + 1 :]]
    return sum((b > a) - (b < a) for a, b in pairs) / len(pairs)


def doubts(values: Sequence[float], what: str = "tokens/s") -> tuple[str, ...]:
    """Why a figure of these rounds is not to be trusted, and what to do; empty if it is.

    >>> doubts([100.0, 101.0, 99.0, 100.0, 100.5])
    ()
    >>> doubts([100.0])
    ('1 round: how far rounds differ is not known; measure again with 3 rounds or more',)
    """
    if len(values) < FEWEST_ROUNDS:
        return (
            f"{len(values)} round{'s' * (len(values) != 1)}: how far rounds differ is not known; "
            f"measure again with {FEWEST_ROUNDS} rounds or more",
        )
    moved, varied = drift(values), variation(values)
    if abs(moved) > DRIFT:
        way = "fall" if moved < 0 else "rise"
        why = "heat, or other work that began?" if moved < 0 else "other work that ended, or too short a warm-up?"
        change = f"{way} by {abs(moved) * 100:.0f} %"
        return (f"{what} {change} from the first rounds to the last: {why} measure again",)
    if varied > NOISY_VARIATION:
        return (
            f"{what} vary by {varied * 100:.0f} % between rounds: other work on the machine? "
            "measure again with more rounds",
        )
    return ()


_MULTIPLIER = {"q8_0": "int8", "f16": "fp32"}  # GGUF's: q8_0 by q8_0 is int8, f16 is widened before it is multiplied


def multiplier_of(precision: str) -> str:
    """The precision in which a contender's products are computed: "int8", "bf16" or "fp32" of a roofline.

    >>> multiplier_of("q8_0"), multiplier_of("bf16")
    ('int8', 'bf16')
    """
    return _MULTIPLIER.get(precision, precision)


def ceiling_flop_per_s(ceilings: Sequence[Ceiling], precision: str) -> float | None:
    """The fastest exact product of a precision: the highest of the engines' medians; None if there is none."""
    counted = [median(c.flop_per_s) for c in ceilings if c.precision == precision and not c.reason and c.flop_per_s]
    return max(counted, default=None)


def ceiling_share(speed_tokens_per_s: float, flop_per_token: float, ceiling: float) -> float:
    """Share of a ceiling, in FLOP/s, that encoding reaches.

    >>> ceiling_share(1000.0, 6e8, 1e12)
    0.6
    """
    return speed_tokens_per_s * flop_per_token / ceiling
