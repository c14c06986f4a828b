"""Smaller ColBERT: rows as int8 with a scale, and neighbours in meaning pooled into one row. Pure functions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.extras import import_extra

_WINDOW_ROWS = 512
"""Rows are clustered among so many neighbours: a clustering compares each with each."""


@dataclass(frozen=True, eq=False)
class Int8Rows:
    """R rows: `values` (R, C) int8, `scales` (R,) float32; row r is `values[r] * scales[r]`."""

    values: NDArray[np.int8]
    scales: NDArray[np.float32]


def to_int8(rows: NDArray[Any]) -> Int8Rows:
    """Round rows to 255 steps, each by its own largest value.

    Args:
        rows: (R, C) floats.

    >>> small = to_int8(np.array([[1.0, -0.25, 0.0]], np.float32))
    >>> small.values.tolist(), (small.values * small.scales[:, None]).round(2).tolist()
    ([[127, -32, 0]], [[1.0, -0.25, 0.0]])
    """
    largest = np.abs(rows).max(axis=1, initial=0).astype(np.float32)
    # the smallest floats have no 127th part
    scales = np.where(largest > 127 * np.finfo(np.float32).tiny, largest / np.float32(127), np.float32(1))
    values = np.rint(rows / scales[:, None]).astype(np.int8)
    return Int8Rows(values, scales)


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
