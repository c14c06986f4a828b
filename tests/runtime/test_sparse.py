import numpy as np
import pytest

from m3_runtime import SparseVectors


@pytest.fixture
def vectors() -> SparseVectors:
    return SparseVectors(
        indptr=np.array([0, 2, 2, 3]),
        ids=np.array([9, 4, 7]),
        weights=np.array([0.5, 0.25, 1.0], np.float32),
        vocab_size=10,
    )


def test_rows_as_dicts_in_order_of_occurrence(vectors):
    assert list(vectors) == [{"9": 0.5, "4": 0.25}, {}, {"7": 1.0}]
    assert list(vectors.lexical_weights(0)) == ["9", "4"]
    assert vectors.lexical_weights(-1) == {"7": 1.0}


def test_rows_as_arrays(vectors):
    assert [(ids.tolist(), weights.tolist()) for ids, weights in vectors.rows()] == [
        ([9, 4], [0.5, 0.25]),
        ([], []),
        ([7], [1.0]),
    ]


def test_values_are_python_floats(vectors):
    assert {type(weight) for weight in vectors.lexical_weights(0).values()} == {float}


def test_a_row_that_is_not_there(vectors):
    with pytest.raises(IndexError, match="text 3 of 3"):
        vectors.row(3)


def test_csr_has_sorted_columns(vectors):
    data, indices, indptr = vectors.to_csr()
    assert (data.tolist(), indices.tolist(), indptr.tolist()) == ([0.25, 0.5, 1.0], [4, 9, 7], [0, 2, 2, 3])


def test_scipy_matrix_is_the_same(vectors):
    import scipy.sparse

    dense = np.zeros((3, 10), np.float32)
    dense[0, [9, 4]] = 0.5, 0.25
    dense[2, 7] = 1
    matrix = scipy.sparse.csr_matrix(vectors.to_csr(), shape=(len(vectors), vectors.vocab_size))
    assert np.array_equal(matrix.toarray(), dense)
    assert matrix.has_sorted_indices


def test_one_row_and_a_slice(encoder, texts):
    sparse = encoder.encode(texts, return_sparse=True).sparse
    rows = list(sparse)
    assert [sparse[0], sparse[-1]] == [rows[0], rows[-1]]
    for part in (slice(1, 3), slice(None, None, -2), slice(5, 5)):
        assert list(sparse[part]) == rows[part]
        assert sparse[part].vocab_size == sparse.vocab_size
    with pytest.raises(IndexError):
        sparse[len(rows)]
