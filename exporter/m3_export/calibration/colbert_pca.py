"""Principal axes of ColBERT rows: fewer dimensions that keep most of what rows differ in. Pure numpy."""

from collections.abc import Sequence

import numpy as np

from m3_export.arrays import Float32Array, Ids

ROWS_PER_DIMENSION = 16


def thinned(ids: Sequence[Ids], width: int) -> Sequence[Ids]:
    """Every n-th text, so that there are about `ROWS_PER_DIMENSION` rows for each of `width` dimensions."""
    rows = sum(len(row) - 1 for row in ids)
    return ids[:: max(1, rows // (ROWS_PER_DIMENSION * width))]


def principal_axes(texts: Sequence[Float32Array]) -> Float32Array:
    """Eigenvectors of the rows' second moments; rows are not centred, because MaxSim is of dot products.

    Args:
        texts: (L-1, C) rows of each text.

    Returns:
        (C, C), an axis in each column, the widest first; the largest value of each is positive.
    """
    rows = np.concatenate(texts).astype(np.float64)
    axes = np.linalg.eigh(rows.T @ rows)[1][:, ::-1]
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    return np.ascontiguousarray(axes * signs, dtype=np.float32)
