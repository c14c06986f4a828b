import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from colbert_loss import losses
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from m3_runtime.bulk.colbert import pooled, to_int8

FLOATS = st.floats(-2, 2, width=32)


def unit_rows(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=FLOATS))
def test_int8_is_off_by_half_a_step_at_most(rows):
    small = to_int8(rows)
    assert small.values.dtype == np.int8
    assert small.scales.dtype == np.float32
    off = np.abs(small.values * small.scales[:, None] - rows)
    assert (off <= small.scales[:, None] * 0.5 + 1e-6).all()
    assert np.isfinite(small.scales).all()
    nonzero = np.abs(rows).max(axis=1) > 1e-30
    assert (np.abs(small.values.astype(int)).max(axis=1)[nonzero] == 127).all()


def test_int8_takes_each_row_by_itself():
    rows = np.array([[1, 0.25], [0.01, -0.0025], [0, 0]], np.float32)
    small = to_int8(rows)
    assert small.values.tolist() == [[127, 32], [127, -32], [0, 0]]


def test_pooling_finds_groups_and_keeps_their_order():
    one, two, three = unit_rows(3)
    rows = np.stack([one, two, one, three, two, one])
    found = pooled(rows, 2)
    np.testing.assert_allclose(found, [one, two, three], atol=1e-6)


def test_a_pooled_row_is_as_long_as_its_rows():
    rows = unit_rows(50)
    assert np.linalg.norm(pooled(rows, 3), axis=1) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(pooled(rows * 3, 3), axis=1) == pytest.approx(3, abs=1e-4)


@given(st.integers(1, 40), st.integers(2, 6))
def test_pooling_keeps_one_row_of_so_many(count, factor):
    rows = unit_rows(count, seed=count)
    found = pooled(rows, factor)
    assert found.shape == (-(-count // factor), 8)
    assert found.dtype == rows.dtype
    assert np.isfinite(found).all()


def test_pooling_by_one_changes_nothing():
    rows = unit_rows(7)
    assert pooled(rows, 1) is rows


def test_long_texts_are_pooled_window_by_window():
    rows = unit_rows(1100)
    found = pooled(rows, 2)
    assert len(found) == 256 + 256 + 38
    np.testing.assert_array_equal(found[:256], pooled(rows[:512], 2))
    np.testing.assert_array_equal(found[512:], pooled(rows[1024:], 2))


def test_rows_that_cancel_out_stay_finite():
    rows = np.array([[1, 0], [-1, 0], [1, 0], [-1, 0]], np.float32)
    assert np.isfinite(pooled(rows, 4)).all()


@pytest.mark.parametrize("pool", [1, 2])
def test_int8_with_scales_in_the_shards(work, encoder, pool):
    texts = [f"text {i} " * (i % 7 + 1) for i in range(12)] + [""]
    source = work.write([{"id": i, "text": text} for i, text in enumerate(texts)])
    more = ("--heads", "colbert", "--colbert-dtype", "int8", "--colbert-pool", pool, "--shard-rows", 5)
    done = work.run(source, *more)
    assert done.returncode == 0, done.stderr
    found = pyarrow.dataset.dataset(work.out / "vectors").to_table()
    expected = [pooled(rows, pool) for rows in encoder.encode(texts, return_colbert_vecs=True).colbert_vecs]
    columns = (found.column(name).to_pylist() for name in ("colbert_vecs", "colbert_scales"))
    for values, scales, rows in zip(*columns, expected, strict=True):
        back = np.array(values, np.float32) * np.array(scales, np.float32)[:, None]
        assert back.shape == rows.shape
        np.testing.assert_allclose(back, rows, atol=np.abs(rows).max() / 127)
    metadata = pq.read_schema(work.out / "vectors" / "part-00000000.parquet").metadata
    assert metadata[b"m3.colbert_dtype"] == b"int8"
    assert metadata[b"m3.colbert_pool"] == str(pool).encode()


def test_what_smaller_rows_lose_on_real_weights(mini_bundle, request):
    dataset = request.config.rootpath / "benchmarks" / "data" / "multilingual"
    found = {one.way: one for one in losses(mini_bundle, dataset)}
    assert found["float16"].maxsim_p95 < 2e-4
    assert found["float16"].ndcg_loss[0] == pytest.approx(0, abs=1e-3)
    assert found["int8"].bytes_per_token < 0.52 * found["float16"].bytes_per_token
    assert found["int8"].maxsim_p95 < 2e-3
    assert abs(found["int8"].ndcg_loss[0]) < 0.01
    assert found["int8, pool 2"].bytes_per_token < 0.28 * found["float16"].bytes_per_token
    assert found["int8, pool 2"].ndcg_loss[0] < 0.03
    shifts = [found[f"float16, pool {factor}"].maxsim_p95 for factor in (2, 3, 4)]
    assert sorted(shifts) == shifts  # the more is pooled, the more scores move
