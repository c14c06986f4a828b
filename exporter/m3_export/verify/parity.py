"""Parity of an encoder: how far a variant's outputs are from the reference's, per head. Pure numpy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_export.arrays import Float32Array
from m3_export.plan.losses import TextLosses
from m3_export.verify.comparison import ModelOutputs, rounded
from m3_runtime.bundle.manifest import ColbertParity, DegenerateParity, DenseParity, SparseParity
from m3_runtime.encode.encoding import Encoding

TOP = 5
# Two weights are a near-tie when the reference's gap is below what this share of all weights moved by, twice.
NOISE_PERCENTILE = 99


@dataclass(frozen=True)
class Outputs(ModelOutputs):
    """What a model gives for N texts: dense (N, H), lexical weights by id, ColBERT rows (L-1, C) each.

    `lexical` and `colbert` are None for a dense-only model.
    """

    dense: Float32Array
    lexical: Sequence[Mapping[int, float]] | None
    colbert: Sequence[Float32Array] | None

    @classmethod
    def of(cls, encoding: Encoding) -> "Outputs":
        """The outputs in a runtime's Encoding of a list of texts."""
        dense, lexical, colbert = encoding.dense_vecs, encoding.lexical_weights, encoding.colbert_vecs
        assert isinstance(dense, np.ndarray) and (lexical is None or isinstance(lexical, list))
        return cls(
            dense=dense,
            lexical=None if lexical is None else [{int(k): float(w) for k, w in row.items()} for row in lexical],
            colbert=None if colbert is None else list(colbert),
        )

    @property
    def pooled(self) -> Float32Array:
        """See `ModelOutputs`."""
        return self.dense

    def pooled_similarities(self, expected: Float32Array, got: Float32Array) -> NDArray[np.float64]:
        """See `ModelOutputs`."""
        return cosines(expected, got)

    def like(self, encoding: Encoding) -> "Outputs":
        """See `ModelOutputs`."""
        return Outputs.of(encoding)

    def losses(self, variant: "Outputs", *, is_degenerate: bool) -> TextLosses:
        """See `ModelOutputs`."""
        texts = len(self.dense)
        sparse, colbert, counts = np.zeros(0), np.zeros(0), np.zeros(texts, np.int64)
        if self.lexical is not None and variant.lexical is not None:
            pairs = zip(self.lexical, variant.lexical, strict=True)
            sparse = np.array([1 - weighted_jaccard(expected, got) for expected, got in pairs])
        if self.colbert is not None and variant.colbert is not None:
            colbert = 1 - cosines(np.concatenate(self.colbert), np.concatenate(variant.colbert))
            counts = np.array([len(rows) for rows in self.colbert])
        return TextLosses(
            dense=1 - cosines(self.dense, variant.dense),
            sparse=sparse,
            colbert=colbert,
            text_of_row=np.repeat(np.arange(texts), counts),
            is_degenerate=np.full(texts, is_degenerate),
        )

    def parity(self, variant: "Outputs") -> Mapping[str, Any]:
        """See `ModelOutputs`."""
        return {
            "dense": dense_parity(self, variant),
            "sparse": sparse_parity(self, variant),
            "colbert": colbert_parity(self, variant),
        }


def dense_parity(reference: Outputs, variant: Outputs) -> DenseParity:
    """Cosine of each text's dense vectors, and the largest difference of an element."""
    found = cosines(reference.dense, variant.dense)
    return DenseParity(
        cosine_mean=rounded(found.mean()),
        cosine_min=rounded(found.min()),
        max_abs=rounded(np.abs(reference.dense - variant.dense).max()),
    )


def degenerate_figures(similarities: NDArray[np.float64], least: float) -> DegenerateParity:
    """Of (N,) similarities of degenerate texts; `least` is what a budget asks of natural ones."""
    return DegenerateParity(
        texts=len(similarities),
        cosine_mean=rounded(similarities.mean()),
        cosine_min=rounded(similarities.min()),
        below=int((similarities < least).sum()),
        below_what=least,
    )


def colbert_parity(reference: Outputs, variant: Outputs) -> ColbertParity | None:
    """Cosine of each ColBERT row, over all rows of all texts."""
    if reference.colbert is None or variant.colbert is None:
        return None
    expected, got = np.concatenate(reference.colbert), np.concatenate(variant.colbert)
    found = cosines(expected, got)
    return ColbertParity(
        cosine_mean=rounded(found.mean()),
        cosine_p5=rounded(np.percentile(found, 5)),
        cosine_min=rounded(found.min()),
        max_abs=rounded(np.abs(expected - got).max()),
    )


def sparse_parity(reference: Outputs, variant: Outputs) -> SparseParity | None:
    """Weighted Jaccard per text, whether the five heaviest ids keep their order, and the largest difference."""
    if reference.lexical is None or variant.lexical is None:
        return None
    pairs = list(zip(reference.lexical, variant.lexical, strict=True))
    moves = np.concatenate([_moves(expected, got) for expected, got in pairs]) if pairs else np.zeros(0)
    noise = 2 * float(np.percentile(moves, NOISE_PERCENTILE)) if moves.size else 0.0
    jaccards = np.array([weighted_jaccard(expected, got) for expected, got in pairs])
    same = np.array([_top(expected) == _top(got) for expected, got in pairs])
    near_tie = np.array([smallest_top_gap(expected) < noise for expected, _ in pairs])
    return SparseParity(
        jaccard_mean=rounded(jaccards.mean()),
        jaccard_min=rounded(jaccards.min()),
        top5_same=rounded(same.mean()),
        top5_same_near_ties_aside=rounded((same | near_tie).mean()),
        max_abs=rounded(moves.max() if moves.size else 0.0),
    )


def weighted_jaccard(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """Sum of the smaller over sum of the larger weights; 1 for two empty vectors.

    >>> weighted_jaccard({1: 1.0, 2: 1.0}, {1: 1.0, 3: 1.0})
    0.3333333333333333
    """
    ids = a.keys() | b.keys()
    larger = sum(max(a.get(i, 0.0), b.get(i, 0.0)) for i in ids)
    return sum(min(a.get(i, 0.0), b.get(i, 0.0)) for i in ids) / larger if larger else 1.0


def smallest_top_gap(weights: Mapping[int, float]) -> float:
    """Smallest distance between neighbours among the six heaviest weights: what the order of the first five depends on.

    >>> smallest_top_gap({1: 0.5, 2: 0.25, 3: 0.125})
    0.125
    """
    heaviest = sorted(weights.values(), reverse=True)[: TOP + 1]
    return min((a - b for a, b in pairwise(heaviest)), default=float("inf"))


def _top(weights: Mapping[int, float]) -> list[int]:
    return sorted(weights, key=lambda i: -weights[i])[:TOP]


def _moves(expected: Mapping[int, float], got: Mapping[int, float]) -> NDArray[np.float64]:
    ids = expected.keys() | got.keys()
    return np.array([abs(expected.get(i, 0.0) - got.get(i, 0.0)) for i in ids], dtype=np.float64)


def cosines(a: Float32Array, b: Float32Array) -> NDArray[np.float64]:
    """(N,) cosines between the rows of two (N, H) arrays, in float64: they have to differ in the sixth digit."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    found: NDArray[np.float64] = (x * y).sum(axis=1) / np.maximum(lengths, 1e-24)
    return found
