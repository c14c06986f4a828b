import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from m3_runtime.batching import ENOUGH_TOKENS, Waiting, pad_batch, plan_batches

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


WINDOWS = st.lists(st.lists(st.integers(2, 600), max_size=30), max_size=6)


def waited(windows: list[list[int]], budget: int, size: int) -> tuple[list[list[int]], list[list[int]]]:
    """Indices of the batches that left with their windows, and of those that were left over."""
    waiting, start = Waiting(budget, size), 0
    left: list[list[int]] = []
    for lengths in windows:
        rows = [np.full(length, start + i, np.int32) for i, length in enumerate(lengths)]
        for batch in waiting.add(start, rows):
            assert all((row == i).all() for i, row in zip(batch.indices, batch.ids, strict=True))
            left.append(batch.indices.tolist())
        start += len(lengths)
    return left, [batch.indices.tolist() for batch in waiting.rest()]


@given(WINDOWS, st.integers(1, 5000), st.integers(1, 40))
def test_whatever_waits_runs_once(windows, budget, size):
    left, rest = waited(windows, budget, size)
    assert sorted(i for batch in left + rest for i in batch) == list(range(sum(map(len, windows))))


@given(WINDOWS, st.integers(1, 5000), st.integers(1, 40))
def test_batches_across_windows_keep_to_the_same_rules(windows, budget, size):
    lengths = [length for window in windows for length in window]
    for batch in itertools.chain(*waited(windows, budget, size)):
        assert len({lengths[i] for i in batch}) == 1
        assert len(batch) == 1 or (len(batch) <= size and len(batch) * lengths[batch[0]] <= budget)


@given(WINDOWS, st.integers(1, 5000), st.integers(1, 40))
def test_only_what_is_worth_it_leaves_before_the_end(windows, budget, size):
    lengths = [length for window in windows for length in window]
    left, _ = waited(windows, budget, size)
    for batch in left:
        tokens = len(batch) * lengths[batch[0]]
        assert tokens >= ENOUGH_TOKENS or len(batch) == size or tokens + lengths[batch[0]] > budget


@given(WINDOWS)
def test_little_waits(windows):
    waiting, start = Waiting(16384, 256), 0
    for lengths in windows * 8:
        list(waiting.add(start, [np.zeros(length, np.int32) for length in lengths]))
        start += len(lengths)
    for batch in waiting.rest():
        assert sum(row.size for row in batch.ids) < ENOUGH_TOKENS
