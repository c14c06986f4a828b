"""Figures of stored values."""

from math import comb

import numpy as np
import pytest

from m3_bench import stats
from m3_bench.documents import MethodRun
from m3_bench.stats import paired_difference

FP32 = (1.0, 0.5, 1.0, 0.0, 0.63, 1.0, 0.39, 1.0)
INT8 = (1.0, 0.5, 0.63, 0.0, 0.63, 1.0, 0.5, 1.0)


def ndcg(one: MethodRun) -> tuple[float, ...]:
    return one.metrics["nDCG@10"]


def run(bundle: str, variant: str, values: tuple[float, ...], method: str = "dense") -> MethodRun:
    return MethodRun(bundle, variant, method, {"nDCG@10": values, "R@10": tuple(2 * v for v in values)})


def test_a_difference_and_its_interval():
    """Of these eight differences one is 0.37, one -0.11, six are 0: how often a resample has which sum is exact."""
    found = paired_difference(FP32, INT8)
    pairs = [(i, j) for i in range(9) for j in range(9 - i)]
    sums = np.array([(0.37 * i - 0.11 * j) / 8 for i, j in pairs])
    chances = np.array([comb(8, i) * comb(8 - i, j) * 6 ** (8 - i - j) / 8**8 for i, j in pairs])
    order = np.argsort(sums)
    below = np.cumsum(chances[order])
    low, high = (sums[order][np.searchsorted(below, share)] for share in (0.025, 0.975))
    assert found.mean == pytest.approx((0.37 - 0.11) / 8)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert not found.is_clear
    assert found == paired_difference(FP32, INT8)


def test_the_interval_is_that_of_every_possible_resample():
    """Of two queries there are four resamples: means 0, 1/2, 1/2, 1 for differences 0 and 1."""
    found = paired_difference((0.0, 1.0), (0.0, 0.0))
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_the_interval_is_about_that_of_theory():
    values = np.random.default_rng(5).normal(0.1, 1.0, 2000)
    found = paired_difference(values, np.zeros(2000))
    half = 1.96 * values.std() / np.sqrt(2000)
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_equal_runs_differ_by_nothing_and_a_shift_is_clear():
    same, shifted = paired_difference(FP32, FP32), paired_difference([v + 0.25 for v in FP32], FP32)
    assert (same.mean, same.low, same.high, same.is_clear) == (0, 0, 0, False)
    assert (shifted.mean, shifted.low, shifted.high) == pytest.approx((0.25, 0.25, 0.25))
    assert shifted.is_clear


def test_it_is_paired():
    """The same values in another order: the mean difference is 0, the interval is not."""
    found = paired_difference(FP32, FP32[::-1])
    assert found.mean == pytest.approx(0)
    assert found.low < -0.1


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="no queries"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="broadcast"):
        paired_difference(FP32, FP32[:3])


def test_loss_is_against_the_same_bundle_and_method():
    runs = [
        MethodRun("", "", "BM25 words", {"nDCG@10": FP32}),
        run("a", "onnx-fp32", FP32),
        run("a", "onnx-int8", INT8),
        run("a", "onnx-int8", INT8, "sparse"),
        run("b", "onnx-fp32", INT8),
        run("b", "onnx-int8", INT8),
    ]
    assert [stats.loss(runs, one, ndcg) is None for one in runs] == [True, True, False, True, True, False]
    assert stats.loss(runs, runs[2], ndcg) == paired_difference(FP32, INT8)
    recall = stats.loss(runs, runs[2], lambda one: one.metrics["R@10"])
    assert recall.mean == pytest.approx(2 * paired_difference(FP32, INT8).mean)
    assert stats.loss(runs, runs[5], ndcg).mean == 0


def test_gain_is_over_the_first_bundle():
    runs = [run("", "", FP32, "BM25 words"), run("before", "onnx-fp32", INT8), run("after", "onnx-fp32", FP32)]
    runs.append(run("after", "onnx-int8", FP32))
    assert [stats.gain(runs, one, ndcg) for one in runs] == [None, None, paired_difference(FP32, INT8), None]
