"""From raw values to figures: pure functions, nothing is timed here.

A round is one contender's turn. Contenders take turns, so two of one run are compared within rounds: what slowed the
machine slowed both. Searches are compared query by query, by a paired bootstrap.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import numpy as np

from m3_bench.cycles import Cycle
from m3_bench.documents import Ceiling, MethodRun, PairScoresOf, Round, Scenario, Soak
from m3_bench.errors import BenchError

NOISY_VARIATION = 0.05
"""Standard deviation between rounds ÷ their mean from which a figure is called noisy."""
FEWEST_ROUNDS = 3
FEWEST_CYCLES = 8
"""Of a soak, after its warmup."""
RESAMPLES, SEED = 10_000, 0
MAIN_METRIC = "nDCG@10"
_RESAMPLES_AT_ONCE = 500  # × 10 000 queries are 40 MB of indices
_MULTIPLIER = {"q8_0": "int8", "f16": "fp32"}  # GGUF's: q8_0 by q8_0 is int8, f16 is widened before it is multiplied


@dataclass(frozen=True)
class Interval:
    """The median over rounds, and the lowest and the highest of them: of five, these hold the true median in 94 %."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Half of the rounds are lower."""
        return median(self.values)

    @property
    def low(self) -> float:
        """The lowest round."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The highest round."""
        return max(self.values)


@dataclass(frozen=True)
class Latency:
    """Percentiles of single calls, in seconds; None where there are too few calls to tell it from the slowest."""

    calls: int
    p50_s: float
    p95_s: float | None
    p99_s: float | None

    @classmethod
    def of(cls, calls_s: Sequence[float]) -> "Latency":
        """Of the seconds of calls; at least one."""
        calls = len(calls_s)
        p50_s, p95_s, p99_s = (float(value) for value in np.percentile(calls_s, (50, 95, 99)))
        return cls(calls, p50_s, p95_s if calls >= 20 else None, p99_s if calls >= 100 else None)


def busy_s(one: Round, scenario: Scenario) -> float:
    """Seconds that a round's calls took together: their sum, or the time on the clock if several run at once."""
    return one.wall_s if scenario.clients * scenario.processes > 1 else sum(one.seconds)


def tokens_per_s(rounds: Sequence[Round], scenario: Scenario) -> Interval:
    """Tokens per second of each round; at least one."""
    return Interval(tuple(scenario.round_tokens / busy_s(one, scenario) for one in rounds))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Round by round, ours ÷ theirs; rounds that only one of them has are left out.

    >>> ratio([2.0, 6.0, 4.0], [1.0, 2.0, 2.0, 9.0]).median
    2.0
    """
    return Interval(tuple(a / b for a, b in zip(ours, theirs, strict=False)))


def cpu_s_per_million_tokens(rounds: Sequence[Round], scenario: Scenario) -> float | None:
    """Processor seconds for 10⁶ tokens, the median over rounds; None where the system does not report them."""
    if any(one.cpu_s <= 0 for one in rounds):
        return None
    return 1e6 * median(one.cpu_s / scenario.round_tokens for one in rounds)


def cost_per_million_tokens(price_per_hour: float, speed_tokens_per_s: float) -> float:
    """What 10⁶ tokens cost on a machine that is kept busy.

    >>> cost_per_million_tokens(3.6, 1000.0)
    1.0
    """
    return 1e6 * price_per_hour / (speed_tokens_per_s * 3600)


def warning_of(values: Sequence[float]) -> str:
    """Why the tokens/s of these rounds are not to be trusted, and what to do; empty if they are.

    >>> warning_of([100.0, 101.0, 99.0, 100.0, 100.5])
    ''
    >>> warning_of([100.0])
    '1 of at least 3 rounds: how far rounds differ is not known; measure again with more rounds'
    """
    if len(values) < FEWEST_ROUNDS:
        rounds = f"{len(values)} of at least {FEWEST_ROUNDS} rounds"
        return f"{rounds}: how far rounds differ is not known; measure again with more rounds"
    variation = float(np.std(values, ddof=1) / np.mean(values))
    if variation <= NOISY_VARIATION:
        return ""
    noise = f"tokens/s vary by {variation * 100:.0f} % between rounds"
    return f"{noise}: other work on the machine? measure again with more rounds"


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


@dataclass(frozen=True)
class Difference:
    """A mean difference over queries, and the interval that holds 95 % of its resamples."""

    mean: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def paired_difference(these: Sequence[float], those: Sequence[float]) -> Difference:
    """How much higher `these` are than `those`, on the same Q queries: paired bootstrap, percentile interval.

    Queries are drawn with replacement, as many as there are, `RESAMPLES` times; a draw takes both values of a query,
    each of which has (Q,).

    Raises:
        ValueError: no queries, or not the same number.
    """
    from scipy.stats import bootstrap

    differences = np.asarray(these, dtype=np.float64) - np.asarray(those, dtype=np.float64)
    if not len(differences):
        raise ValueError("no queries, so no difference")
    mean = float(differences.mean())
    if len(differences) == 1:
        return Difference(mean, mean, mean)
    draws = {"n_resamples": RESAMPLES, "batch": _RESAMPLES_AT_ONCE, "random_state": np.random.default_rng(SEED)}
    interval = bootstrap((differences,), np.mean, method="percentile", **draws).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high))


_Row = TypeVar("_Row", MethodRun, PairScoresOf)
"""A row of a document: a method of a bundle's variant."""
ValuesOf = Callable[[_Row], Sequence[float]]
"""A row's value of each query."""


def is_fp32(variant: str) -> bool:
    """Whether a variant is its bundle's reference: its name, which the exporter gives, ends so.

    >>> is_fp32("onnx-fp32"), is_fp32("onnx-int8")
    (True, False)
    """
    return variant.endswith("fp32")


def loss(rows: Sequence[_Row], row: _Row, values_of: ValuesOf[_Row]) -> Difference | None:
    """What an INT8 variant loses against its bundle's FP32 variant with the same method; above 0 is worse.

    Returns:
        None for the FP32 variant itself, where it was not measured, and where there are no values.
    """
    same = (other for other in rows if (other.bundle, other.method) == (row.bundle, row.method))
    reference = next((other for other in same if is_fp32(other.variant)), None)
    if reference is None or is_fp32(row.variant) or not values_of(row):
        return None
    return paired_difference(values_of(reference), values_of(row))


def gain(rows: Sequence[_Row], row: _Row, values_of: ValuesOf[_Row]) -> Difference | None:
    """What a bundle gains over the document's first bundle, same variant and method; above 0 is better.

    Returns:
        None for BM25, for the first bundle, where that has no such row, and where there are no values.
    """
    first = next((other.bundle for other in rows if other.bundle), "")
    same = (first, row.variant, row.method)
    before = next((other for other in rows if (other.bundle, other.variant, other.method) == same), None)
    if before is None or row.bundle in ("", first) or not values_of(row):
        return None
    return paired_difference(values_of(row), values_of(before))


def margins(scores: PairScoresOf) -> tuple[float, ...]:
    """Best positive less best negative, of each query that has negatives."""
    return tuple(max(positives) - max(negatives) for positives, negatives in with_negatives(scores))


def pair_accuracies(scores: PairScoresOf) -> tuple[float, ...]:
    """Share of (positive, negative) pairs in the right order, of each query that has negatives; a tie is half right."""
    gaps = [np.subtract.outer(positives, negatives) for positives, negatives in with_negatives(scores)]
    return tuple(float(((gap > 0) + 0.5 * (gap == 0)).mean()) for gap in gaps)


def with_negatives(scores: PairScoresOf) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Scores of positives and negatives of each query that has negatives."""
    pairs = zip(scores.positives, scores.negatives, strict=True)
    return [(positives, negatives) for positives, negatives in pairs if negatives]


@dataclass(frozen=True)
class Growth:
    """What a soak shows, over the cycles after its warmup.

    The slope is Theil and Sen's, the median over all pairs of cycles, with its 90 % interval; leaks are differences
    between the medians of the last quarter and of the one before: pools of threads grow to their size at first.
    """

    mb_per_hour: float
    low: float
    high: float
    descriptors: float
    threads: float
    wrong: int
    errors: int

    def over(self, mb_per_hour: float) -> list[str]:
        """What is not steady, in words. Memory grows if the slope's whole interval is above so much: not by chance."""
        found = [
            (f"resident memory grows by {self.mb_per_hour:.2f} MB/h", self.low > mb_per_hour),
            (f"{self.wrong} phases with a wrong answer", self.wrong > 0),
            (f"{self.errors} requests neither answered nor refused", self.errors > 0),
            (f"{self.descriptors:g} descriptors leaked", self.descriptors > 0),
            (f"{self.threads:g} threads leaked", self.threads > 0),
        ]
        return [words for words, is_over in found if is_over]


def cycles_after_warmup(soak: Soak) -> list[Cycle]:
    """The cycles after a soak's warmup, which count as growth."""
    return [one for one in soak.cycles if one.seconds >= soak.warmup_s]


def growth(soak: Soak) -> Growth:
    """What a soak shows.

    Raises:
        BenchError: too few cycles after the warmup.
    """
    counted = cycles_after_warmup(soak)
    if len(counted) < FEWEST_CYCLES:
        raise BenchError(
            f"{len(counted)} cycles after {soak.warmup_s:.0f} s: a slope needs {FEWEST_CYCLES}; give --minutes more"
        )
    from scipy.stats import theilslopes

    hours, megabytes = [one.seconds / 3600 for one in counted], [one.resident_bytes / 1e6 for one in counted]
    slope, _, low, high = theilslopes(megabytes, hours, 0.9)
    quarter = len(counted) // 4
    before, last = counted[-2 * quarter : -quarter], counted[-quarter:]
    return Growth(
        mb_per_hour=float(slope),
        low=float(low),
        high=float(high),
        descriptors=median(one.descriptors for one in last) - median(one.descriptors for one in before),
        threads=median(one.threads for one in last) - median(one.threads for one in before),
        wrong=sum(one.wrong for one in soak.cycles),
        errors=sum(sum(one.errors.values()) for one in soak.cycles),
    )
