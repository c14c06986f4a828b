"""Principal axes of ColBERT rows, against rows whose axes are known."""

import numpy as np

from m3_export.calibration.statistics import principal_axes
from m3_runtime import Bundle
from m3_runtime.bundle.reader import COLBERT_PCA


def test_axes_are_orthonormal_and_the_widest_comes_first():
    draws = np.random.default_rng(0)
    turn = np.linalg.qr(draws.normal(size=(5, 5)))[0]
    rows = (draws.normal(size=(4000, 5)) * [9, 5, 3, 1, 0.1] @ turn.T).astype(np.float32)
    exact = rows.astype(np.float64)
    axes = principal_axes(exact.T @ exact)
    assert axes.dtype == np.float32
    np.testing.assert_allclose(axes.T @ axes, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(np.abs(axes.T @ turn), np.eye(5), atol=0.06)
    assert (axes[np.abs(axes).argmax(axis=0), range(5)] > 0).all()


def test_a_bundle_has_its_axes_listed(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    width = bundle.manifest.geometry.colbert_dim
    assert bundle.colbert_pca.size_bytes == (tiny_bundle / COLBERT_PCA).stat().st_size
    assert bundle.colbert_axes(width).shape == (width, width)
