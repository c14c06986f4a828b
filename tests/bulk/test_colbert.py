from dataclasses import replace

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from colbert_loss import WAYS, losses
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from m3_runtime import BundleFormatError, HeadError, InputError, PackedRows
from m3_runtime.bundle.reader import COLBERT_PCA
from m3_runtime.encode.colbert import ColbertDtype, stored
from m3_runtime.encode.pooling import pooled
from m3_runtime.scoring import colbert_score

FLOATS = st.floats(-2, 2, width=32)


def unit_rows(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=FLOATS))
def test_int8_is_off_by_half_a_step_at_most(rows):
    small = stored(rows, "int8")
    assert small.values.dtype == np.int8
    assert small.scales.dtype == np.float32
    off = np.abs(small.values * small.scales[:, None] - rows)
    assert (off <= small.scales[:, None] * 0.5 + 1e-6).all()
    assert np.isfinite(small.scales).all()
    nonzero = np.abs(rows).max(axis=1) > 1e-30
    assert (np.abs(small.values.astype(int)).max(axis=1)[nonzero] == 127).all()


def test_int8_takes_each_row_by_itself():
    rows = np.array([[1, 0.25], [0.01, -0.0025], [0, 0]], np.float32)
    small = stored(rows, "int8")
    assert small.values.tolist() == [[127, 32], [127, -32], [0, 0]]


FORMS = ("int8", "int4", "binary")


@pytest.mark.parametrize("dtype", FORMS)
@example(np.array([[1, -1e-45]], np.float32))
@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=19), elements=FLOATS))
def test_packed_rows_keep_signs_and_the_product_with_their_row(dtype, rows):
    small = stored(rows, dtype)
    back = np.asarray(small)
    assert back.shape == small.shape == rows.shape
    assert back.dtype == np.float32
    assert small.nbytes == len(rows) * ColbertDtype(dtype).row_bytes(rows.shape[1])
    assert np.isfinite(back).all()
    assert (back * rows >= 0).all()
    sizes = np.square(rows.astype(float)).sum(axis=1)
    kept = sizes > 1e-20
    tolerance = 1e-5 if dtype != "int8" else 0.06
    np.testing.assert_allclose((back * rows).sum(axis=1)[kept], sizes[kept], rtol=tolerance)


def test_bits_lie_as_documented():
    signs = stored(np.array([[0.5, -0.5, 0.5, 0.5, -0.5, -0.5, -0.5, 0.5, 0.5]], np.float32), "binary")
    assert signs.values.tolist() == [[0b10110001, 0b10000000]]
    nibbles = stored(np.array([[15, -15, 1], [-1, 3, -15]], np.float32), "int4")
    assert nibbles.values.tolist() == [[0xF0, 0x80], [0x79, 0x00]]
    np.testing.assert_allclose(np.asarray(nibbles)[0], [15, -15, 1], rtol=1e-6)


@pytest.mark.parametrize("dtype", FORMS)
def test_maxsim_takes_packed_rows(dtype):
    query, passage = unit_rows(5, 64), unit_rows(40, 64, seed=1)
    small = stored(passage, dtype)
    exact, found = colbert_score(query, passage), colbert_score(query, small)
    assert found == colbert_score(query, np.asarray(small))
    assert found == pytest.approx(exact, abs={"int8": 0.003, "int4": 0.03, "binary": 0.15}[dtype])
    with pytest.raises(InputError, match="PackedRows"):
        colbert_score(query, np.packbits(passage > 0, axis=1))


def test_packed_rows_that_do_not_fit():
    small = stored(unit_rows(3, 16), "binary")
    for dtype, values, scales, message in (
        ("int4", small.values, small.scales, "rows of 16 values must be"),
        ("binary", small.values, small.scales[:2], "rows of 16 values must be"),
        ("binary", small.values, np.array(1, np.float32), "rows of 16 values must be"),
        ("binary", small.values.view(np.int8), small.scales, "rows of 16 values must be"),
        ("binary", small.values.tolist(), small.scales, "must be numpy arrays, got list and ndarray"),
        ("float16", small.values, small.scales, "float16 rows are not packed: an array of them is all"),
        ("int2", small.values, small.scales, "dtype must be one of float32, float16, int8, int4, binary, got 'int2'"),
    ):
        with pytest.raises(InputError, match=message):
            PackedRows(dtype, values, scales, 16)
    with pytest.raises(InputError, match="rows of 0 values"):
        PackedRows("binary", small.values[:, :0], small.scales, 0)


@pytest.mark.parametrize("dtype", FORMS)
def test_packed_rows_may_be_none_and_are_always_a_new_array(dtype):
    none = stored(np.empty((0, 9), np.float32), dtype)
    assert np.asarray(none).shape == none.shape == (0, 9)
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        with pytest.raises(ValueError, match="copy=False"):
            np.asarray(none, copy=False)


@pytest.mark.parametrize("dtype", FORMS)
def test_an_encoder_packs_what_it_would_have_returned(encoder, dtype):
    texts = ["one text", "another, longer text", ""]
    rows = encoder.encode(texts, return_colbert_vecs=True).colbert_vecs
    small = encoder.encode(texts, return_colbert_vecs=True, colbert_dtype=dtype)
    for found, whole in zip(small.colbert_vecs, rows, strict=True):
        np.testing.assert_array_equal(found.values, stored(whole, dtype).values)
    assert small.nbytes < encoder.encode(texts, return_colbert_vecs=True).nbytes
    one = encoder.encode(texts[0], return_colbert_vecs=True, colbert_dtype=dtype)
    assert isinstance(one.colbert_vecs, PackedRows)
    assert one.nbytes > 0


def test_fewer_dimensions_are_the_bundles_principal_axes(encoder):
    width = encoder.bundle.manifest.geometry.colbert_dim
    rows = encoder.encode("some words to project", return_colbert_vecs=True).colbert_vecs
    for dim in (width, 5, 1):
        found = encoder.encode("some words to project", return_colbert_vecs=True, colbert_dim=dim).colbert_vecs
        assert found.shape == (len(rows), dim)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        expected = rows @ encoder.bundle.colbert_axes(dim)
        lengths = np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(found * lengths, expected, atol=1e-5)
    axes = encoder.bundle.colbert_axes(width)
    np.testing.assert_allclose(axes.T @ axes, np.eye(width), atol=1e-5)  # all of them: scores stay


def test_dimensions_are_any_integer(encoder):
    assert encoder.bundle.colbert_axes(np.int64(3)).shape == (encoder.bundle.manifest.geometry.colbert_dim, 3)
    for dim in (0, 10**6, -1, 2.0, "2", True):
        with pytest.raises(InputError, match="colbert_dim must be a number from 1 to"):
            encoder.bundle.colbert_axes(dim)


def test_a_bundle_without_axes_opens_and_says_so(encoder):
    manifest = encoder.bundle.manifest
    kept = tuple(entry for entry in manifest.files if entry.path != COLBERT_PCA)
    older = replace(encoder.bundle, manifest=replace(manifest, files=kept))
    assert older.colbert_pca is None
    with pytest.raises(InputError, match=r"has no colbert_pca\.npy, as older exports; export it again"):
        older.colbert_axes(4)
    headless = replace(
        encoder.bundle, manifest=replace(manifest, geometry=replace(manifest.geometry, colbert_dim=None))
    )
    with pytest.raises(HeadError, match="the bundle has no colbert head"):
        headless.colbert_axes(4)


def test_axes_of_another_shape_are_refused(encoder, tmp_path):
    for content in (np.eye(3, dtype=np.float32), np.eye(encoder.bundle.manifest.geometry.colbert_dim), None):
        if content is None:
            (tmp_path / COLBERT_PCA).write_bytes(b"nothing")
        else:
            np.save(tmp_path / COLBERT_PCA, content)
        with pytest.raises(BundleFormatError, match=r"colbert_pca\.npy"):
            replace(encoder.bundle, folder=tmp_path).colbert_axes(2)


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


@pytest.mark.parametrize("dtype", FORMS)
def test_packed_rows_take_on_disk_what_they_have_in_memory(work, dtype):
    source = work.numbered(200)
    assert work.run(source, "--heads", "dense,colbert", "--colbert-dtype", dtype).returncode == 0
    (shard,) = (work.out / "vectors").glob("*")
    group = pq.ParquetFile(shard).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    column = columns["colbert_vecs.list.element.list.element"]
    assert column.total_compressed_size < 1.2 * column.num_values + 1500  # a dictionary is 1 KB at most


@pytest.mark.parametrize("dtype", ["int4", "binary"])
def test_packed_rows_of_fewer_dimensions_in_the_shards(work, encoder, dtype):
    texts = [f"text {i} " * (i % 5 + 1) for i in range(6)]
    source = work.write([{"id": i, "text": text} for i, text in enumerate(texts)])
    done = work.run(source, "--heads", "colbert", "--colbert-dtype", dtype, "--colbert-dim", 6)
    assert done.returncode == 0, done.stderr
    found = pyarrow.dataset.dataset(work.out / "vectors").to_table()
    said = {key.decode(): value.decode() for key, value in found.schema.metadata.items()}
    assert said["m3.colbert_dim"] == "6"
    assert said["m3.colbert_pca"] == encoder.bundle.colbert_pca.sha256
    expected = encoder.encode(texts, return_colbert_vecs=True, colbert_dtype=dtype, colbert_dim=6).colbert_vecs
    columns = (found.column(name).to_pylist() for name in ("colbert_vecs", "colbert_scales"))
    for values, scales, rows in zip(*columns, expected, strict=True):
        dim = int(said["m3.colbert_dim"])
        back = PackedRows(said["m3.colbert_dtype"], np.array(values, np.uint8), np.array(scales, np.float32), dim)
        np.testing.assert_allclose(np.asarray(back), np.asarray(rows), atol=1e-5)
    again = work.run(source, "--heads", "colbert", "--colbert-dtype", dtype, "--colbert-dim", 5)
    assert again.returncode != 0
    assert "colbert dim: begun with 6, now 5" in again.stderr


def test_what_smaller_rows_lose_on_real_weights(mini_bundle, request):
    dataset = request.config.rootpath / "benchmarks" / "data" / "multilingual"
    by_pool = [f"float16, pool {factor}" for factor in (2, 3, 4)]
    names = {"float16", "int8", "int4", "binary", "float16, 1/2 of the dimensions", "int8, pool 2", *by_pool}
    ways = [way for way in WAYS if way.name in names]
    found = {one.way: one for one in losses(mini_bundle, dataset, ways=ways)}
    assert found["float16"].maxsim_p95 < 2e-4
    assert found["float16"].ndcg_loss[0] == pytest.approx(0, abs=1e-3)
    assert found["int8"].bytes_per_token < 0.52 * found["float16"].bytes_per_token
    assert found["int8"].maxsim_p95 < 2e-3
    assert abs(found["int8"].ndcg_loss[0]) < 0.01
    assert found["int4"].bytes_per_token < 0.27 * found["float16"].bytes_per_token
    assert found["binary"].bytes_per_token < 0.08 * found["float16"].bytes_per_token
    assert found["int4"].maxsim_spread < 0.01 < found["binary"].maxsim_spread < 0.05
    assert found["int4"].ndcg_loss[0] < 0.01
    assert found["binary"].ndcg_loss[0] < 0.02
    assert found["float16, 1/2 of the dimensions"].ndcg_loss[0] < 0.05
    assert found["int8, pool 2"].bytes_per_token < 0.28 * found["float16"].bytes_per_token
    assert found["int8, pool 2"].ndcg_loss[0] < 0.03
    shifts = [found[name].maxsim_p95 for name in by_pool]
    assert sorted(shifts) == shifts  # the more is pooled, the more scores move
