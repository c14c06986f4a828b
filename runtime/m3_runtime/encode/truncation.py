"""Keeping only the leading dimensions of vectors, as FlagEmbedding's `truncate_dim` does."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.encode.encoding import Encoding

_SMALLEST_NORM = 1e-12


def leading_dimensions(encoding: Encoding, size: int, *, normalize: bool) -> Encoding:
    """The same texts with the first `size` dimensions of their dense and ColBERT vectors.

    FlagEmbedding cuts before it normalizes. Cutting afterwards and normalizing again gives the same vectors,
    because the first normalization only scaled them.

    Args:
        encoding: what `encode` returned.
        size: dimensions to keep; narrower vectors stay as they are.
        normalize: whether vectors have unit length.
    """
    colbert = encoding.colbert_vecs
    return replace(
        encoding,
        dense_vecs=None if encoding.dense_vecs is None else _leading(encoding.dense_vecs, size, normalize),
        colbert_vecs=[_leading(rows, size, normalize) for rows in colbert]
        if isinstance(colbert, list)
        else None
        if colbert is None
        else _leading(colbert, size, normalize),
    )


def _leading(vectors: NDArray[Any], size: int, normalize: bool) -> NDArray[Any]:
    kept = vectors[..., :size].copy()
    if not normalize:
        return kept
    norm = np.linalg.norm(kept.astype(np.float32), axis=-1, keepdims=True)
    return (kept / np.maximum(norm, _SMALLEST_NORM)).astype(vectors.dtype)
