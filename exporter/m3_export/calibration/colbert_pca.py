"""Principal axes of ColBERT rows: fewer dimensions that keep most of what rows differ in."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_export.arrays import Float32Array
from m3_runtime.bundle.reader import COLBERT_PCA


def write_colbert_pca(folder: Path, moments: NDArray[np.float64]) -> None:
    """Write what `colbert_dim` projects on: the axes of (C, C) second moments of ColBERT rows."""
    np.save(folder / COLBERT_PCA, principal_axes(moments))


def principal_axes(moments: NDArray[np.float64]) -> Float32Array:
    """Eigenvectors of the rows' second moments.

    Args:
        moments: (C, C).

    Returns:
        (C, C), an axis in each column, the widest first; the largest value of each is positive.
    """
    axes = np.linalg.eigh(moments)[1][:, ::-1]
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    return np.ascontiguousarray(axes * signs, dtype=np.float32)
