import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from m3_runtime.batching import pad_batch, plan_batches

LENGTHS = st.lists(st.integers(2, 600), max_size=80)


def plan(lengths: list[int], budget: int, size: int) -> list[list[int]]:
    return [batch.tolist() for batch in plan_batches(np.array(lengths, dtype=np.int64), budget, size)]


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40))
def test_every_text_is_in_exactly_one_batch(lengths, budget, size):
    assert sorted(i for batch in plan(lengths, budget, size) for i in batch) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40))
def test_a_batch_keeps_to_both_bounds_unless_it_is_one_long_text(lengths, budget, size):
    for batch in plan(lengths, budget, size):
        padded = len(batch) * max(lengths[i] for i in batch)
        assert 1 <= len(batch) <= size
        assert padded <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40))
def test_longest_first_and_equal_lengths_in_order(lengths, budget, size):
    order = [i for batch in plan(lengths, budget, size) for i in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40))
def test_the_texts_of_a_batch_have_one_length(lengths, budget, size):
    for batch in plan(lengths, budget, size):
        assert len({lengths[i] for i in batch}) == 1


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40))
def test_a_batch_is_as_large_as_the_bounds_allow(lengths, budget, size):
    batches = plan(lengths, budget, size)
    for batch, following in itertools.pairwise(batches):
        length = lengths[batch[0]]
        is_full = len(batch) == size or (len(batch) + 1) * length > budget
        assert is_full or lengths[following[0]] != length


@given(st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=12), min_size=1, max_size=8))
def test_padding_is_on_the_right_and_masked(rows):
    batch = pad_batch([np.array(row, dtype=np.int32) for row in rows], pad_id=1)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64
    assert batch.input_ids.shape == batch.attention_mask.shape == (len(rows), max(map(len, rows)))
    for ids, mask, row in zip(batch.input_ids.tolist(), batch.attention_mask.tolist(), rows, strict=True):
        pads = batch.input_ids.shape[1] - len(row)
        assert ids == row + [1] * pads
        assert mask == [1] * len(row) + [0] * pads
