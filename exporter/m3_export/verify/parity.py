"""Parity of an encoder: how far a variant's outputs are from the reference's, per head. Pure numpy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from m3_export.arrays import Float32Array
from m3_export.plan.losses import TextLosses
from m3_runtime.bundle.manifest import ColbertParity, DegenerateParity, DenseParity, SparseParity
from m3_runtime.encode.encoding import Encoding

TOP = 5
# Two weights are a near-tie when the reference's gap is below what this share of all weights moved by, twice.
NOISE_PERCENTILE = 99
DIGITS = 8  # stored; smaller differences are those of the order in which threads add


@dataclass(frozen=True)
class Outputs:
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


def dense_parity(reference: Outputs, variant: Outputs) -> DenseParity:
    """Cosine of each text's dense vectors, and the largest difference of an element."""
    cosines = _cosines(reference.dense, variant.dense)
    return DenseParity(
        cosine_mean=rounded(cosines.mean()),
        cosine_min=rounded(cosines.min()),
        max_abs=rounded(np.abs(reference.dense - variant.dense).max()),
    )


def degenerate_parity(reference: Outputs, variant: Outputs, dense_min: float) -> DegenerateParity:
    """Cosine of the dense vectors of degenerate texts; `dense_min` is what a budget asks of natural ones."""
    return degenerate_figures(dense_cosines(reference, variant), dense_min)


def degenerate_figures(similarities: NDArray[np.float64], least: float) -> DegenerateParity:
    """The same of (N,) similarities, whatever they are of."""
    return DegenerateParity(
        texts=len(similarities),
        cosine_mean=rounded(similarities.mean()),
        cosine_min=rounded(similarities.min()),
        below=int((similarities < least).sum()),
        below_what=least,
    )


def dense_cosines(reference: Outputs, variant: Outputs) -> NDArray[np.float64]:
    """(N,) cosine of each text's dense vectors."""
    return _cosines(reference.dense, variant.dense)


def text_losses(reference: Outputs, variant: Outputs, *, is_degenerate: bool) -> TextLosses:
    """The same comparison text by text, as losses."""
    texts = len(reference.dense)
    sparse, colbert, counts = np.zeros(0), np.zeros(0), np.zeros(texts, np.int64)
    if reference.lexical is not None and variant.lexical is not None:
        pairs = zip(reference.lexical, variant.lexical, strict=True)
        sparse = np.array([1 - weighted_jaccard(expected, got) for expected, got in pairs])
    if reference.colbert is not None and variant.colbert is not None:
        colbert = 1 - _cosines(np.concatenate(reference.colbert), np.concatenate(variant.colbert))
        counts = np.array([len(rows) for rows in reference.colbert])
    return TextLosses(
        dense=1 - _cosines(reference.dense, variant.dense),
        sparse=sparse,
        colbert=colbert,
        text_of_row=np.repeat(np.arange(texts), counts),
        is_degenerate=np.full(texts, is_degenerate),
    )


def colbert_parity(reference: Outputs, variant: Outputs) -> ColbertParity | None:
    """Cosine of each ColBERT row, over all rows of all texts."""
    if reference.colbert is None or variant.colbert is None:
        return None
    expected, got = np.concatenate(reference.colbert), np.concatenate(variant.colbert)
    cosines = _cosines(expected, got)
    return ColbertParity(
        cosine_mean=rounded(cosines.mean()),
        cosine_p5=rounded(np.percentile(cosines, 5)),
        cosine_min=rounded(cosines.min()),
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
    """Smallest distance between neighbours among the six heaviest weights: what an order of five hangs on.

    >>> smallest_top_gap({1: 0.5, 2: 0.25, 3: 0.125})
    0.125
    """
    heaviest = sorted(weights.values(), reverse=True)[: TOP + 1]
    return min((a - b for a, b in pairwise(heaviest)), default=float("inf"))


def lowest_cosine(a: Float32Array, b: Float32Array) -> float:
    """Lowest cosine between rows of two (N, H) arrays."""
    return rounded(_cosines(a, b).min())


def _top(weights: Mapping[int, float]) -> list[int]:
    return sorted(weights, key=lambda i: -weights[i])[:TOP]


def _moves(expected: Mapping[int, float], got: Mapping[int, float]) -> NDArray[np.float64]:
    ids = expected.keys() | got.keys()
    return np.array([abs(expected.get(i, 0.0) - got.get(i, 0.0)) for i in ids], dtype=np.float64)


def _cosines(a: Float32Array, b: Float32Array) -> NDArray[np.float64]:
    # in float64: cosines have to differ from one another in the sixth digit
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosines: NDArray[np.float64] = (x * y).sum(axis=1) / np.maximum(lengths, 1e-24)
    return cosines


def rounded(value: float | np.floating) -> float:
    """A figure as it is stored."""
    return round(float(value), DIGITS)
