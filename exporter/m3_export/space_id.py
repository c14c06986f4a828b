"""The name of a vector space, from all that makes it."""

import hashlib

from m3_export.checkpoint.folder import Checkpoint


def space_id_of(weights: str, ids: str, checkpoint: Checkpoint) -> str:
    """Names the vector space: the same weights, tokenization, pooling and normalisation give the same id."""
    pooling, geometry = checkpoint.pooling, checkpoint.geometry
    encoder = f"{geometry.attention_heads} heads, epsilon {checkpoint.layer_norm_epsilon!r}"  # not seen in the weights
    parts = (weights, ids, encoder, pooling.pooling, f"normalize {pooling.normalize}")
    return "m3-" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
