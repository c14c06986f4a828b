"""Fewer ColBERT rows: neighbours in meaning pooled into one. Pure functions."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.extras import import_extra

_WINDOW_ROWS = 512
"""Rows are clustered among so many neighbours: a clustering compares each with each."""


def pooled(rows: NDArray[Any], factor: int) -> NDArray[Any]:
    """Cluster a text's rows and keep one for each cluster: its mean, as long as its rows are on average.

    Ward's hierarchical clustering, as in Clavié, Chaffin and Adams, "Reducing the Footprint of Multi-Vector Retrieval
    with Minimal Performance Impact via Token Pooling" (2024), within windows of 512 rows. Rows come in the order of the
    first of their cluster.

    Args:
        rows: (R, C) floats, at least one row.
        factor: rows of a cluster, on average; 1 keeps all.

    Returns:
        (ceil(R / factor), C) for R up to 512, fewer where rows are alike, and so for each window of a longer text; the
        dtype of `rows`.

    Raises:
        ExtraNotInstalledError: scipy is not installed.
    """
    if factor == 1 or len(rows) == 1:
        return rows
    windows = [rows[start : start + _WINDOW_ROWS] for start in range(0, len(rows), _WINDOW_ROWS)]
    return np.concatenate([_pooled_window(window, factor) for window in windows])


def _pooled_window(rows: NDArray[Any], factor: int) -> NDArray[Any]:
    if len(rows) == 1:
        return rows
    hierarchy = import_extra("scipy.cluster.hierarchy", "bulk")
    # On rows of one length Ward's squared distances are cosines, up to a factor.
    tree = hierarchy.linkage(rows, method="ward")
    numbers = hierarchy.fcluster(tree, t=-(-len(rows) // factor), criterion="maxclust")
    _, first, clusters = np.unique(numbers, return_index=True, return_inverse=True)
    members = clusters[:, None] == np.argsort(first)
    weights = (members / members.sum(axis=0)).T.astype(np.float32)
    means = weights @ rows
    lengths = weights @ np.linalg.norm(rows, axis=1)
    norms = np.linalg.norm(means, axis=1)
    return np.asarray(means * (lengths / np.where(norms > 0, norms, 1))[:, None], dtype=rows.dtype)
