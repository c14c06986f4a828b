import numpy as np
import pytest

from m3_bench.workers import gemm

ROWS = 70  # more than are compared with numpy
FLOP = 2.0 * ROWS * 1024 * 4096


def test_onnxruntimes_product_is_exact_on_this_processor():
    product = gemm.Product("onnxruntime", "int8", threads=1, rows=ROWS)
    assert product.work(None) == FLOP


def test_openvinos_product_is_a_product():
    """With small numbers, which no processor saturates."""
    rng = np.random.default_rng(0)
    rows = rng.integers(120, 137, (8, gemm.INNER)).astype(np.uint8)
    weights = rng.integers(-8, 9, (gemm.INNER, gemm.COLUMNS)).astype(np.int8)
    got = gemm.on_openvino(rows, weights, "int8", threads=1)()
    np.testing.assert_array_equal(got, gemm.exact_rows(rows, weights))


def with_product(monkeypatch, engine, change):
    """An engine whose product is numpy's, changed."""

    def made(rows, weights, _precision, _threads):
        product = change(gemm.exact_rows(rows, weights))
        return lambda: product

    monkeypatch.setattr(gemm, "ENGINES", {engine: made})


def test_a_product_that_saturates_is_no_ceiling(monkeypatch):
    def saturated(product):
        product[3, 5] -= 1
        return product

    with_product(monkeypatch, "openvino", saturated)
    with pytest.raises(ArithmeticError, match="openvino's int8 product is off by"):
        gemm.Product("openvino", "int8", threads=1, rows=ROWS)


@pytest.mark.parametrize("engine", list(gemm.ENGINES))
def test_float_products_are_right(engine):
    assert gemm.Product(engine, "fp32", threads=1, rows=ROWS).work(None) == FLOP


def test_a_float_product_that_is_off_is_no_ceiling(monkeypatch):
    with_product(monkeypatch, "openvino", lambda product: product * 1.001)
    with pytest.raises(ArithmeticError, match="openvino's fp32 product is off by"):
        gemm.Product("openvino", "fp32", threads=1, rows=ROWS)


@pytest.mark.parametrize("precision", list(gemm.DYNAMIC))
def test_dynamic_products_are_near(precision):
    """What int8 saturates to is another matter: where there is no dot product, the engine multiplies in float."""
    assert gemm.Product("openvino", precision, threads=1, rows=ROWS).work(None) == FLOP


def test_memory_is_read_whole(monkeypatch):
    monkeypatch.setattr(gemm, "READ_BYTES", 2**24)
    reading = gemm.Reading(threads=2)
    assert reading.work(reading.run((), ())) == 2.0**24
    with pytest.raises(ArithmeticError, match="came out as 1"):
        reading.work(1.0)
