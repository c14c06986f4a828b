import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.encoding import Encoding, EncodingBuilder
from m3_runtime.encode.outputs import colbert_rows, sparse_rows
from m3_runtime.engines import TokenBatch

VOCABULARY = 12


def slow_lexical_weights(ids: list[int], weights: list[float]) -> dict[str, float]:
    """FlagEmbedding's rule, one token at a time."""
    found: dict[str, float] = {}
    for token, weight in zip(ids, weights, strict=True):
        if weight > 0 and weight > found.get(str(token), 0.0):
            found[str(token)] = weight
    return found


@st.composite
def batches(draw):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(2, 20)))
    ids = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, VOCABULARY - 1)))
    weights = draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([0.0, 0.0, 0.125, 0.25, 0.5, 1.5])))
    return TokenBatch(ids, np.ones_like(ids)), weights


@given(batches())
def test_lexical_rows_equal_a_loop_over_tokens_order_included(case):
    batch, weights = case
    vectors = sparse_rows(batch, weights, VOCABULARY)
    expected = [slow_lexical_weights(i, w) for i, w in zip(batch.input_ids.tolist(), weights.tolist(), strict=True)]
    assert [list(weights.items()) for weights in vectors] == [list(weights.items()) for weights in expected]


@given(st.lists(batches(), max_size=4), st.randoms(use_true_random=False))
def test_gathering_puts_every_text_back_in_its_place(cases, random):
    texts = [row for batch, weights in cases for row in zip(batch.input_ids, weights, strict=True)]
    order = list(range(len(texts)))
    random.shuffle(order)
    places, builder = iter(order), EncodingBuilder(len(order), {Head.SPARSE}, vocab_size=VOCABULARY)
    for batch, weights in cases:
        rows, counts = sparse_rows(batch, weights, VOCABULARY), np.full(len(weights), weights.shape[1])
        for row in range(len(rows)):
            builder.take(next(places), Encoding(None, rows, None, counts), row)
    vectors = builder.encoding().sparse
    for place, (ids, weights) in zip(order, texts, strict=True):
        assert vectors.lexical_weights(place) == slow_lexical_weights(ids.tolist(), weights.tolist())


@given(batches(), st.randoms(use_true_random=False))
def test_packed_texts_are_told_apart(case, random):
    """The texts of a batch, shuffled into one row, give what they give in rows of their own."""
    batch, weights = case
    rows, tokens = weights.shape
    numbers = [number for number in range(1, rows + 1) for _ in range(tokens)]
    random.shuffle(numbers)
    order = np.argsort(numbers, kind="stable")
    places = np.empty(order.size, np.int64)
    places[order] = np.arange(order.size)
    packed = TokenBatch(batch.input_ids.flatten()[places][None], np.array(numbers)[None])
    found = sparse_rows(packed, weights.flatten()[places][None], VOCABULARY)
    expected = sparse_rows(batch, weights, VOCABULARY)
    for name in ("indptr", "ids", "weights"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    vectors = np.arange(rows * tokens, dtype=np.float32).reshape(rows, tokens, 1)
    split = list(colbert_rows(packed, vectors.reshape(1, -1, 1)[:, places][:, 1:]))
    assert all(np.array_equal(a, b[1:]) for a, b in zip(split, vectors, strict=True))


def test_nan_weights_are_dropped_like_zeros():
    batch = TokenBatch(np.array([[0, 5, 6, 2]]), np.ones((1, 4), np.int64))
    rows = sparse_rows(batch, np.array([[0, np.nan, 0.5, 0]], np.float32), VOCABULARY)
    assert rows.ids.tolist() == [6]


def test_colbert_rows_leave_out_the_first_token_and_keep_the_last():
    vectors = np.arange(2 * 4 * 3, dtype=np.float32).reshape(2, 4, 3)
    batch = TokenBatch(np.zeros((2, 5), np.int64), np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]))
    long, short = colbert_rows(batch, vectors)
    assert np.array_equal(long, vectors[0])
    assert np.array_equal(short, vectors[1, :2])


def test_colbert_rows_own_their_memory():
    vectors = np.ones((1, 4, 3), np.float32)
    (rows,) = colbert_rows(TokenBatch(np.zeros((1, 5), np.int64), np.ones((1, 5), np.int64)), vectors)
    assert rows.flags.owndata
    assert rows.base is None
    assert not np.shares_memory(rows, vectors)
