import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_runtime import InputError
from m3_runtime.scoring import (
    FusionWeights,
    PairScores,
    colbert_score,
    compute_lexical_matching_score,
)


def scores(dense: float, sparse: float, colbert: float) -> PairScores:
    return PairScores(*(np.array([value], np.float32) for value in (dense, sparse, colbert)))


def test_lexical_score_of_the_published_example():
    # BGE-M3 README, "What is BGE M3?" against itself: 0.1971 (sum of squares of the published weights).
    weights = {
        "4865": 0.08362077,
        "83": 0.081469566,
        "335": 0.12964639,
        "11679": 0.25186998,
        "276": 0.17001738,
        "363": 0.26957875,
        "32": 0.040755156,
    }
    assert compute_lexical_matching_score(weights, weights) == pytest.approx(0.197116, abs=1e-6)


def test_lexical_score_without_shared_ids_is_zero():
    assert compute_lexical_matching_score({"1": 1.0}, {"2": 1.0}) == 0.0
    assert isinstance(compute_lexical_matching_score({}, {}), float)


def test_lexical_scores_of_two_lists():
    matrix = compute_lexical_matching_score([{"1": 1.0}, {"2": 2.0}], [{"1": 0.5}, {"2": 0.5}, {}])
    assert matrix.tolist() == [[0.5, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert compute_lexical_matching_score([], [{"1": 1.0}]).shape == (0, 1)


@pytest.mark.parametrize("pair", [({}, [{}]), ([{}], {}), ("a", {}), (None, None)])
def test_lexical_score_refuses_a_mix(pair):
    with pytest.raises(InputError, match="two dicts or two lists"):
        compute_lexical_matching_score(*pair)


def test_colbert_score_is_the_mean_of_the_best_matches():
    query = np.array([[1, 0], [0, 1]], np.float32)
    passage = np.array([[0.6, 0.8], [-1, 0], [0, -1]], np.float32)
    assert colbert_score(query, passage) == pytest.approx(0.7)
    assert type(colbert_score(query, passage)) is float


def test_colbert_score_is_not_clamped_at_zero():
    assert colbert_score(np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0]])) == -1.0


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3,), (2, 3)), ((0, 3), (2, 3))])
def test_colbert_score_refuses_other_shapes(shapes):
    with pytest.raises(InputError, match="of one width"):
        colbert_score(np.zeros(shapes[0]), np.zeros(shapes[1]))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_colbert_score_refuses_values_without_their_scales(dtype):
    rows = np.ones((2, 3), np.float32)
    for pair in ((rows, rows.astype(dtype)), (rows.astype(dtype), rows)):
        with pytest.raises(InputError, match="PackedRows, with dtype, scales and dim"):
            colbert_score(*pair)


def test_combination_of_the_published_example():
    # BGE-M3 README, fp16 on GPU, weights [0.4, 0.2, 0.4], pair Q1 P1.
    result = scores(0.6259765625, 0.195556640625, 0.7796499729156494).combined(FusionWeights(0.4, 0.2, 0.4))
    assert list(result) == ["colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense"]
    assert result["sparse+dense"][0] == pytest.approx(0.482503205537796, abs=1e-6)
    assert result["colbert+sparse+dense"][0] == pytest.approx(0.6013619303703308, abs=1e-6)


UNIT = st.floats(0, 1, width=32)


@given(UNIT, UNIT, UNIT)
def test_combined_scores_lie_between_their_parts(dense, sparse, colbert):
    result = scores(dense, sparse, colbert).combined(FusionWeights())
    parts = dense, sparse, colbert
    assert min(parts) - 1e-6 <= result["colbert+sparse+dense"][0] <= max(parts) + 1e-6
    assert result["sparse+dense"][0] == pytest.approx((dense + sparse) / 2, abs=1e-6)


def test_colbert_alone_leaves_sparse_dense_at_zero_not_nan():
    result = scores(0.5, 0.5, 0.75).combined(FusionWeights.from_sequence([0, 0, 1]))
    assert result["sparse+dense"] == [0.0]
    assert result["colbert+sparse+dense"] == [0.75]


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 1, 1], [math.nan, 1, 1], ["a", 1, 1], 3, [0, 0, 0], [1, -1, 0]])
def test_unusable_weights(weights):
    with pytest.raises(InputError, match="weights"):
        FusionWeights.from_sequence(weights)


@pytest.mark.parametrize("size", [6e-49, 1.0, 1e300])
def test_weights_may_be_of_any_size(size):
    combined = scores(0.5, 0.25, 0.75).combined(FusionWeights(2 * size, size, size))
    assert combined["colbert+sparse+dense"] == pytest.approx([0.5])
    assert combined["sparse+dense"] == pytest.approx([1.25 / 3])
