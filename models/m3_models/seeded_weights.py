"""Seeded random weights for an encoder and its heads: noise in which dropped or swapped tensors show."""

import zlib
from dataclasses import dataclass

import numpy as np

from m3_models.checkpoint_files import PAD_ID, Classifier, FloatArray, Heads, Linear, TensorSource

SEED = 20240205
SCORES_APART = 4.0  # about how far a unit of the classifier's input moves the score


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the random values."""

    word: float  # word embeddings; others get a fifth of it: what all texts share must not drown the words
    weight: float  # matrices
    bias: float  # never zero, so that a dropped bias shows
    gain: float  # LayerNorm gains, around 1


def seeded_tensors(seed: int, spread: Spread) -> TensorSource:
    """Return a source that draws each tensor from its own generator, so their order changes nothing."""

    def tensor(name: str, shape: tuple[int, ...]) -> FloatArray:
        values = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, np.float32)
        values *= np.float32(_deviation(name, spread))
        if name.endswith("LayerNorm.weight"):
            values += np.float32(1)
        if name.endswith(("word_embeddings.weight", "position_embeddings.weight")):
            # torch's Embedding keeps the padding row at zero.
            values[PAD_ID] = 0
        return values

    return tensor


def _deviation(name: str, spread: Spread) -> float:
    if name.endswith("LayerNorm.weight"):
        return spread.gain
    if name.endswith(".bias"):
        return spread.bias
    if name == "embeddings.word_embeddings.weight":
        return spread.word
    return spread.word / 5 if name.startswith("embeddings.") else spread.weight


def seeded_heads(seed: int, *, hidden: int, colbert: int, sparse_bias: float) -> Heads:
    """Draw the heads.

    Args:
        seed: Seed.
        hidden: H.
        colbert: C.
        sparse_bias: Chosen so that most tokens have a weight and some have none, as in a trained head; random
            encoders differ in what all their tokens share, so it has to be looked up once per seed.

    Returns:
        sparse (1, H), ColBERT (C, H).
    """
    rng = np.random.default_rng([seed, zlib.crc32(b"heads")])
    scale = np.float32(1 / np.sqrt(hidden))
    sparse = rng.standard_normal((1, hidden), np.float32) * scale * np.float32(0.3)
    projection = rng.standard_normal((colbert, hidden), np.float32) * scale
    return Heads(
        sparse=Linear(sparse, np.full(1, sparse_bias, np.float32)),
        colbert=Linear(projection, rng.standard_normal(colbert, np.float32) * np.float32(0.1)),
    )


def seeded_classifier(seed: int, *, hidden: int) -> Classifier:
    """Draw a reranker's head: tanh neither linear nor saturated, scores a few units apart."""
    rng = np.random.default_rng([seed, zlib.crc32(b"classifier")])
    scale = np.float32(1 / np.sqrt(hidden))
    return Classifier(
        dense=Linear(
            rng.standard_normal((hidden, hidden), np.float32) * scale,
            rng.standard_normal(hidden, np.float32) * np.float32(0.1),
        ),
        out_proj=Linear(
            rng.standard_normal((1, hidden), np.float32) * scale * np.float32(SCORES_APART),
            np.full(1, -1, np.float32),
        ),
    )
