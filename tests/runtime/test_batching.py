import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_runtime.bundle.manifest import Pooling
from m3_runtime.encode.batching import (
    ENOUGH_TOKENS,
    ROW_TOKENS,
    Batch,
    BatchLimits,
    Waiting,
    fill_rows,
    pack_batch,
    pad_batch,
    plan_batches,
)

LENGTHS = st.lists(st.integers(2, 600), max_size=80)
PACKED = st.sampled_from([0, 4, 64])


def plan(lengths: list[int], budget: int, size: int, packed: int = 0) -> list[Batch]:
    return list(plan_batches(np.array(lengths, dtype=np.int64), BatchLimits(budget, size, packed)))


def planned(lengths: list[int], budget: int, size: int) -> list[list[int]]:
    return [batch.indices.tolist() for batch in plan(lengths, budget, size)]


def steps(length: int) -> int:
    return length + length % 2


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40), PACKED)
def test_every_text_is_in_exactly_one_batch(lengths, budget, size, packed):
    batches = plan(lengths, budget, size, packed)
    assert sorted(i for batch in batches for i in batch.indices) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40), PACKED)
def test_length_alone_decides_what_is_packed(lengths, budget, size, packed):
    for batch in plan(lengths, budget, size, packed):
        assert {lengths[i] <= packed for i in batch.indices} == {batch.is_packed}


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40), PACKED)
def test_a_batch_keeps_to_both_bounds_unless_it_is_one_text(lengths, budget, size, packed):
    for batch in plan(lengths, budget, size, packed):
        texts = batch.indices.size
        assert 1 <= texts <= size
        width = max(sum(steps(lengths[i]) if batch.is_packed else lengths[i] for i in row) for row in batch.rows)
        assert len(batch.rows) * width <= budget or texts == 1
        assert width <= ROW_TOKENS or not batch.is_packed


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40))
def test_longest_first_and_equal_lengths_in_order(lengths, budget, size):
    order = [i for batch in planned(lengths, budget, size) for i in batch]
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40), PACKED)
def test_texts_that_are_not_packed_have_rows_of_their_own_and_one_length(lengths, budget, size, packed):
    for batch in plan(lengths, budget, size, packed):
        if not batch.is_packed:
            assert [row.size for row in batch.rows] == [1] * len(batch.rows)
            assert len({lengths[i] for i in batch.indices}) == 1


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 40))
def test_a_batch_is_as_large_as_the_bounds_allow(lengths, budget, size):
    batches = planned(lengths, budget, size)
    for batch, following in itertools.pairwise(batches):
        length = lengths[batch[0]]
        is_full = len(batch) == size or (len(batch) + 1) * length > budget
        assert is_full or lengths[following[0]] != length


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200), st.integers(64, 300), st.integers(1, 40))
def test_rows_are_full_but_not_too_full_and_even(lengths, most_tokens, most_texts):
    rows = fill_rows(np.array(lengths), most_tokens, most_texts)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    tokens = [sum(lengths[i] for i in row) for row in rows]
    assert max(tokens) <= most_tokens
    assert all(1 <= len(row) <= most_texts for row in rows)
    least = max(-(-sum(lengths) // most_tokens), -(-len(lengths) // most_texts))
    assert least <= len(rows) <= 2 * least
    if most_texts >= len(lengths):
        assert max(tokens) - min(tokens) <= max(lengths)


ROWS = st.lists(
    st.lists(st.lists(st.integers(2, 99), min_size=2, max_size=12), min_size=1, max_size=6), min_size=1, max_size=4
)


@pytest.mark.parametrize("pooling", list(Pooling))
@given(ROWS)
def test_a_packed_batch_holds_every_text_in_its_order(pooling, rows):
    batch = pack_batch([[np.array(text, np.int32) for text in row] for row in rows], 1, pooling)
    texts = [text for row in rows for text in row]
    found = [batch.input_ids[batch.texts() == number].tolist() for number in range(len(texts))]
    assert found == texts
    assert (batch.input_ids[batch.attention_mask == 0] == 1).all()
    pooled = [batch.input_ids[row, column] for row, column in batch.packed_texts]
    assert pooled == [text[-1 if pooling is Pooling.LAST_TOKEN else 0] for text in texts]
    assert batch.input_ids.shape == (len(rows), max(sum(map(steps, map(len, row))) for row in rows))


@given(ROWS)
def test_the_first_token_of_each_packed_text_is_among_the_leading_ones(rows):
    batch = pack_batch([[np.array(text, np.int32) for text in row] for row in rows], 1, Pooling.CLS)
    assert batch.packed_texts[:, 1].max() < batch.leading == 2 * max(map(len, rows))


@given(ROWS)
def test_pairs_of_tokens_stay_pairs(rows):
    """Tokens 2i and 2i + 1 of a text lie side by side, the first in an even column."""
    batch = pack_batch([[np.array(text, np.int32) for text in row] for row in rows], 1, Pooling.CLS)
    for number in range(sum(map(len, rows))):
        _, columns = np.nonzero(batch.texts() == number)
        assert (columns[::2] % 2 == 0).all()
        assert (columns[1::2] == columns[::2][: columns[1::2].size] + 1).all()


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


def waited(
    windows: list[list[int]], budget: int, size: int, packed: int = 0
) -> tuple[list[list[int]], list[list[int]]]:
    """Indices of the batches that left with their windows, and of those that were left over."""
    waiting, start = Waiting(BatchLimits(budget, size, packed)), 0
    left: list[list[int]] = []
    for lengths in windows:
        rows = [np.full(length, start + i, np.int32) for i, length in enumerate(lengths)]
        for batch in waiting.add(start, rows):
            assert all((row == i).all() for i, row in zip(batch.batch.indices, batch.ids, strict=True))
            left.append(batch.batch.indices.tolist())
        start += len(lengths)
    return left, [batch.batch.indices.tolist() for batch in waiting.rest()]


@given(WINDOWS, st.integers(1, 5000), st.integers(1, 40), PACKED)
def test_whatever_waits_runs_once(windows, budget, size, packed):
    left, rest = waited(windows, budget, size, packed)
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


@given(WINDOWS, PACKED)
def test_little_waits(windows, packed):
    waiting, start = Waiting(BatchLimits(16384, 256, packed)), 0
    for lengths in windows * 8:
        list(waiting.add(start, [np.zeros(length, np.int32) for length in lengths]))
        start += len(lengths)
    for batch in waiting.rest():
        assert sum(row.size for row in batch.ids) < ENOUGH_TOKENS
