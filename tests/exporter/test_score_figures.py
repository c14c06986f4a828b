"""A reranker's figures: differences, orders, losses, budget, against numbers worked out by hand or by brute force."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_export.plan.losses import PairLosses, ScoreFigures, limits_of
from m3_export.verify.budget import ScoreBudget, excesses
from m3_export.verify.scores import Scores, kendall_tau, score_parity
from m3_runtime.bundle.manifest import DegenerateParity, Parity, ScoreParity

VALUES = st.lists(st.integers(-9, 9), min_size=4, max_size=4).map(np.float32)


def scores(values: list[float], query_of: list[int]) -> Scores:
    return Scores.of_reference(np.float32(values), np.array(query_of))


def test_equal_scores_are_perfect():
    found = scores([3, 1, -2, 5, 4], [0, 0, 0, 1, 1])
    parity = score_parity(found, found)
    assert (parity.difference_max, parity.kendall_tau, parity.top1_same, parity.top10_overlap) == (0, 1, 1, 1)
    assert parity.spread == pytest.approx(np.std([3, 1, -2, 5, 4]), abs=1e-8)
    assert found.similarities(found).tolist() == [1.0] * 5


def test_figures_by_hand():
    reference = scores([3, 1, -2, 5, 4.9], [0, 0, 0, 1, 1])
    variant = replace(reference, values=np.float32([3, 1.1, -2, 5, 5.1]))
    parity = score_parity(reference, variant)
    assert parity.difference_max == pytest.approx(0.2, abs=1e-6)
    assert parity.difference_mean == pytest.approx(0.06, abs=1e-6)
    assert parity.kendall_tau == 0.0  # 1 of the first query, -1 of the second
    assert (parity.top1_same, parity.top1_same_near_ties_aside) == (0.5, 1.0)
    assert reference.similarities(variant).min() == pytest.approx(1 - (0.2 / parity.spread) ** 2, abs=1e-6)
    assert reference.parity(variant)["score"] == parity


def test_another_best_passage_counts_where_the_gap_is_over_the_noise():
    reference = scores([*([5.0, 0.0] * 200)], [i // 2 for i in range(400)])
    values = reference.values.copy()
    values[:2] = [0, 5]  # one query in two hundred: its pairs are above the 99th percentile
    parity = score_parity(reference, replace(reference, values=values))
    assert parity.top1_same == parity.top1_same_near_ties_aside == 1 - 1 / 200
    losses = reference.losses(replace(reference, values=values), is_degenerate=False)
    assert losses.figures(1.0).top1 == pytest.approx(1 / 200)


@given(VALUES, VALUES)
def test_kendall_tau_is_that_of_all_pairs(a: np.ndarray, b: np.ndarray):
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in combinations(range(4), 2)]
    untied = [sum(bool(pair[k]) for pair in signs) for k in (0, 1)]
    if all(untied):
        expected = sum(x * y for x, y in signs) / np.sqrt(untied[0] * untied[1])
        assert kendall_tau(a, b) == pytest.approx(expected)
    assert kendall_tau(a, b) == pytest.approx(kendall_tau(b, a))


def test_losses_of_a_reranker_add_up_and_have_its_figures():
    squares = np.array([0.01, 0.04, 0.0, 0.25, 0.09])
    losses = PairLosses(squares, np.array([False, False, False, True, True]))
    figures = losses.figures(worst_text=0.1)
    assert figures.score_max == pytest.approx(0.2)
    assert figures.degenerate_share == 0.5
    assert figures.score_p99 == pytest.approx(np.sqrt(np.percentile(squares[:3], 99)))
    twice = losses.predicted(losses.additive() + losses.additive(), 0.1)
    assert twice.score_p99 == pytest.approx(np.sqrt(2) * losses.predicted(losses.additive(), 0.1).score_p99)
    assert twice.degenerate_share == pytest.approx((0.1 + 0.1) / 2)  # no more than the limit each
    assert losses.upper_bounds(0.1, np.random.default_rng(0)).score_p99 >= figures.score_p99
    limits = limits_of(ScoreBudget())
    assert limits == ScoreFigures(0.05, 0.15, pytest.approx(0.02), 0.005)
    assert limits.worst_text == pytest.approx(0.0225)
    assert figures.worst(limits) == pytest.approx(0.5 / 0.005)


PARITY = Parity(
    texts=384,
    tokens=9000,
    probe_sha256="0" * 64,
    measured_on="paper",
    dense=None,
    sparse=None,
    colbert=None,
    batch_invariance_min=1.0,
    padded_dense_min=1.0,
    degenerate=DegenerateParity(400, 0.999, 0.98, 2, 0.9775),
    score=ScoreParity(0.01, 0.1, 0.3, 2.0, 0.99, 0.9, 0.98, 0.97),
)


def test_what_is_within_its_budget_and_what_is_over():
    assert excesses(PARITY, ScoreBudget(), "int8", normalize=False) == ()
    figures = ("difference_p99", "difference_max", "top1_same_near_ties_aside")
    for figure, value, said in zip(figures, (0.101, 0.301, 0.97), ("p99", "max", "top-1"), strict=True):
        parity = replace(PARITY, score=replace(PARITY.score, **{figure: value}))
        (excess,) = excesses(parity, ScoreBudget(), "int8", normalize=False)
        assert said in excess.figure
    strange = replace(PARITY, degenerate=replace(PARITY.degenerate, below=3))
    assert "degenerate" in excesses(strange, ScoreBudget(), "int8", normalize=False)[0].figure
    padded = replace(PARITY, padded_dense_min=0.97)
    assert "padded" in excesses(padded, ScoreBudget(), "int8", normalize=False)[0].figure


def test_fp32_is_held_to_arithmetic_noise_before_the_sigmoid():
    (excess,) = excesses(PARITY, ScoreBudget(), "fp32", normalize=False)
    assert (excess.figure, excess.limit) == ("score difference max", 1e-4)
    exact = replace(PARITY, score=replace(PARITY.score, difference_max=9e-5))
    assert excesses(exact, ScoreBudget(), "fp32", normalize=False) == ()
