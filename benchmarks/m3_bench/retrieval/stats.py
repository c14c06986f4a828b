"""From per-query values to figures. Pure functions; the report calls them too."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_bench.documents import MethodRun

RESAMPLES = 10_000
SEED = 0
MAIN_METRIC = "nDCG@10"
_BLOCK = 500  # resamples at a time: 500 × 10 000 queries are 40 MB of indices


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


def mean(values: Sequence[float]) -> float:
    """The mean over queries; 0 of none.

    >>> mean([1.0, 0.5])
    0.75
    """
    return float(np.mean(values)) if len(values) else 0.0


def paired_difference(
    these: Sequence[float], those: Sequence[float], resamples: int = RESAMPLES, seed: int = SEED
) -> Difference:
    """How much higher `these` are than `those`, on the same Q queries: paired bootstrap, percentile interval.

    Queries are drawn with replacement, as many as there are, so often; each draw takes both values of a query.

    Args:
        these: (Q,) values.
        those: (Q,) values of the same queries.
        resamples: how often.
        seed: of the draws; the same seed gives the same interval.

    Raises:
        ValueError: no queries, or not the same number.
    """
    differences = np.asarray(these, dtype=np.float64) - np.asarray(those, dtype=np.float64)
    if not len(differences):
        raise ValueError("no queries, so no difference")
    means = np.concatenate(list(_resampled(differences, resamples, seed)))
    low, high = np.percentile(means, (2.5, 97.5))
    return Difference(float(differences.mean()), float(low), float(high))


def _resampled(values: NDArray[np.float64], resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    draws = np.random.default_rng(seed)
    for start in range(0, resamples, _BLOCK):
        shape = (min(_BLOCK, resamples - start), len(values))
        yield values[draws.integers(0, len(values), shape)].mean(axis=1)


def is_fp32(variant: str) -> bool:
    """Whether a variant is its bundle's reference: what exporters call it says so.

    >>> is_fp32("onnx-fp32"), is_fp32("onnx-int8")
    (True, False)
    """
    return variant.endswith("fp32")


def loss(runs: Sequence[MethodRun], run: MethodRun, metric: str = MAIN_METRIC) -> Difference | None:
    """What an INT8 variant loses against its bundle's FP32 variant with the same method; above 0 is worse.

    Args:
        runs: all of a document.
        run: one of them.
        metric: its name.

    Returns:
        None for BM25, for the FP32 variant itself, and where it was not measured.
    """
    reference = next((r for r in runs if is_fp32(r.variant) and (r.bundle, r.method) == (run.bundle, run.method)), None)
    if reference is None or is_fp32(run.variant):
        return None
    return paired_difference(reference.metrics[metric], run.metrics[metric])


def gain(runs: Sequence[MethodRun], run: MethodRun, metric: str = MAIN_METRIC) -> Difference | None:
    """What a bundle gains over the first bundle of the document, same variant and method; above 0 is better.

    Returns:
        None for BM25, for the first bundle itself, and where that has no such run.
    """
    first = next((r.bundle for r in runs if r.bundle), "")
    if run.bundle in ("", first):
        return None
    same = (first, run.variant, run.method)
    before = next((r for r in runs if (r.bundle, r.variant, r.method) == same), None)
    return None if before is None else paired_difference(run.metrics[metric], before.metrics[metric])
