"""The parity figures against slow computations by hand."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_export.verify.parity import (
    Outputs,
    colbert_parity,
    dense_parity,
    smallest_top_gap,
    sparse_parity,
    weighted_jaccard,
)

Weights = Mapping[int, float]
NO_DENSE = np.zeros((1, 2), np.float32)
weights = st.dictionaries(st.integers(0, 30), st.floats(2**-10, 10, width=32), max_size=12)


def noise(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def lexical(*rows: Weights) -> Outputs:
    return Outputs(NO_DENSE, rows, None)


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    dot = math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(float(x) ** 2 for x in a)) / math.sqrt(math.fsum(float(y) ** 2 for y in b))


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two neighbours in rank."""
    ordered = sorted(values)
    place = share / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def largest_difference(a: np.ndarray, b: np.ndarray) -> float:
    return max(abs(float(x) - float(y)) for x, y in zip(a.ravel(), b.ravel(), strict=True))


# Dense


def test_dense_figures_by_hand():
    expected, got = noise(7, 5, seed=1), noise(7, 5, seed=1) + 0.1 * noise(7, 5, seed=2)
    cosines = [cosine(a, b) for a, b in zip(expected, got, strict=True)]
    parity = dense_parity(Outputs(expected, None, None), Outputs(got, None, None))
    assert parity.cosine_mean == pytest.approx(sum(cosines) / 7, abs=1e-8)
    assert parity.cosine_min == pytest.approx(min(cosines), abs=1e-8)
    assert parity.max_abs == pytest.approx(largest_difference(expected, got), abs=1e-7)


def test_equal_vectors_are_at_one_and_opposite_at_minus_one():
    vectors = Outputs(noise(3, 8, seed=3), None, None)
    assert dense_parity(vectors, vectors).cosine_min == 1.0
    assert dense_parity(vectors, vectors).max_abs == 0.0
    assert dense_parity(vectors, Outputs(-vectors.dense, None, None)).cosine_mean == -1.0


def test_cosines_are_told_apart_in_the_seventh_digit():
    expected = np.array([[1.0, 0.0]], np.float32)
    got = np.array([[1.0, 1e-3]], np.float32)
    assert dense_parity(Outputs(expected, None, None), Outputs(got, None, None)).cosine_min == 1 - 5e-7


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_makes_the_figure_none(value: float):
    expected = noise(3, 4, seed=4)
    got = expected.copy()
    got[1, 2] = value
    with np.errstate(invalid="ignore"):
        parity = dense_parity(Outputs(expected, None, None), Outputs(got, None, None))
    assert not parity.cosine_min >= 0.5 and not parity.cosine_mean >= 0.5 and not parity.max_abs <= 1e9


def test_a_lost_vector_is_no_agreement():
    expected, got = noise(2, 4, seed=5), noise(2, 4, seed=5)
    got[0] = 0
    assert dense_parity(Outputs(expected, None, None), Outputs(got, None, None)).cosine_min == 0.0


# ColBERT


def test_colbert_figures_are_over_all_rows_of_all_texts():
    lengths = (1, 4, 30)
    expected = [noise(n, 6, seed=n) for n in lengths]
    got = [rows + 0.2 * noise(*rows.shape, seed=99) for rows in expected]
    cosines = [cosine(a, b) for x, y in zip(expected, got, strict=True) for a, b in zip(x, y, strict=True)]
    assert len(cosines) == sum(lengths)
    parity = colbert_parity(Outputs(NO_DENSE, None, expected), Outputs(NO_DENSE, None, got))
    assert parity is not None
    assert parity.cosine_mean == pytest.approx(sum(cosines) / len(cosines), abs=1e-8)
    assert parity.cosine_p5 == pytest.approx(percentile(cosines, 5), abs=1e-8)
    assert parity.cosine_min == pytest.approx(min(cosines), abs=1e-8)
    differences = [largest_difference(x, y) for x, y in zip(expected, got, strict=True)]
    assert parity.max_abs == pytest.approx(max(differences), abs=1e-7)


# Sparse


def slow_jaccard(a: Weights, b: Weights) -> float:
    smaller = larger = 0.0
    for i in range(31):
        smaller += min(a.get(i, 0.0), b.get(i, 0.0))
        larger += max(a.get(i, 0.0), b.get(i, 0.0))
    return smaller / larger if larger else 1.0


@given(weights, weights)
def test_weighted_jaccard_by_hand(a: Weights, b: Weights):
    assert weighted_jaccard(a, b) == pytest.approx(slow_jaccard(a, b), rel=1e-12)
    assert weighted_jaccard(a, b) == pytest.approx(weighted_jaccard(b, a), rel=1e-12)
    assert weighted_jaccard(a, a) == 1.0


def test_weighted_jaccard_at_its_edges():
    assert weighted_jaccard({}, {}) == 1.0
    assert weighted_jaccard({1: 0.5}, {}) == 0.0
    assert weighted_jaccard({1: 0.5}, {2: 0.5}) == 0.0
    assert weighted_jaccard({1: 1.0}, {1: 0.5}) == 0.5


def test_sparse_figures_by_hand():
    expected = {1: 0.5, 2: 0.4}, {3: 1.0}, {}
    got = {1: 0.4, 2: 0.5}, {3: 1.0, 4: 0.25}, {}
    parity = sparse_parity(lexical(*expected), lexical(*got))
    assert parity is not None
    assert parity.jaccard_mean == pytest.approx((0.8 + 0.8 + 1) / 3, abs=1e-8)
    assert parity.jaccard_min == pytest.approx(0.8, abs=1e-8)
    assert parity.max_abs == 0.25
    assert parity.top5_same == pytest.approx(1 / 3, abs=1e-8)


def test_a_swap_within_the_noise_is_a_near_tie_and_one_above_it_is_not():
    # 200 weights move by 0.01: the noise is 0.02, twice the 99th percentile
    calm = {i: 1.0 + i for i in range(200)}
    moved = {i: weight + 0.01 for i, weight in calm.items()}
    near, swapped = {1: 0.500, 2: 0.510}, {1: 0.510, 2: 0.500}
    far, crossed = {1: 0.500, 2: 0.550}, {1: 0.550, 2: 0.500}
    parity = sparse_parity(lexical(calm, near, far), lexical(moved, swapped, crossed))
    assert parity is not None
    assert parity.top5_same == pytest.approx(1 / 3, abs=1e-8)
    assert parity.top5_same_near_ties_aside == pytest.approx(2 / 3, abs=1e-8)


def test_only_the_five_heaviest_have_to_keep_their_order():
    expected = {i: 10.0 - i for i in range(8)}
    got = {**expected, 6: expected[7], 7: expected[6]}
    parity = sparse_parity(lexical(expected), lexical(got))
    assert parity is not None and parity.top5_same == 1.0
    got = {**expected, 4: 0.5}
    parity = sparse_parity(lexical(expected), lexical(got))
    assert parity is not None and parity.top5_same == 0.0


def test_texts_without_any_weight_have_figures_too():
    parity = sparse_parity(lexical({}, {}), lexical({}, {}))
    assert parity is not None
    assert (parity.jaccard_mean, parity.top5_same, parity.max_abs) == (1.0, 1.0, 0.0)


@given(st.lists(st.floats(2**-10, 10, width=32), min_size=2, max_size=12))
def test_smallest_top_gap_by_hand(values: list[float]):
    ordered = sorted(values, reverse=True)[:6]
    assert smallest_top_gap(dict(enumerate(values))) == min(
        ordered[i] - ordered[i + 1] for i in range(len(ordered) - 1)
    )


def test_one_weight_has_no_gap():
    assert smallest_top_gap({7: 0.5}) == smallest_top_gap({}) == math.inf


@pytest.mark.parametrize("figure", [sparse_parity, colbert_parity])
def test_a_dense_only_model_has_no_other_figures(figure):
    dense_only = Outputs(NO_DENSE, None, None)
    full = Outputs(NO_DENSE, [{1: 1.0}], [np.ones((1, 2), np.float32)])
    assert figure(dense_only, dense_only) is None
    assert figure(full, full) is not None


def test_a_lost_text_is_an_error_not_a_figure():
    with pytest.raises(ValueError, match="argument"):
        sparse_parity(lexical({1: 1.0}, {2: 1.0}), lexical({1: 1.0}))
    with pytest.raises(ValueError, match=r"shape|broadcast"):
        dense_parity(Outputs(noise(3, 4, seed=1), None, None), Outputs(noise(2, 4, seed=1), None, None))
