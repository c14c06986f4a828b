"""What a plan loses on some texts, per text and token, and the figures that a budget limits.

Engine and simulation are compared with the exact model by the same code. A loss is 1 minus a figure that is 1 where all
is exact: 1 - cosine of dense vectors and of ColBERT rows, 1 - weighted Jaccard of lexical weights.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from m3_export.verify.budget import Budget

Floats = NDArray[np.float64]
DRAWS = 400  # of the bootstrap
CONFIDENCE = 0.95  # one-sided


@dataclass(frozen=True)
class Losses:
    """The figures of a budget as losses, each 0 where all is exact."""

    dense_mean: float
    dense_min: float
    colbert_p5: float
    sparse_jaccard: float
    degenerate_share: float

    def as_array(self) -> Floats:
        """(5,) in the order of the fields."""
        return np.array([getattr(self, f.name) for f in fields(self)])

    def in_parts_of(self, limits: "Losses") -> Floats:
        """(5,) each loss divided by its limit: above 1 is over budget."""
        return self.as_array() / np.maximum(limits.as_array(), 1e-12)

    def worst(self, limits: "Losses") -> float:
        """The largest loss in parts of its limit: at most 1 is within."""
        return float(self.in_parts_of(limits).max())


def limits_of(budget: Budget) -> Losses:
    """The budget as the most that may be lost."""
    return Losses(
        dense_mean=1 - budget.dense_mean,
        dense_min=1 - budget.dense_min,
        colbert_p5=1 - budget.colbert_p5,
        sparse_jaccard=1 - budget.sparse_jaccard,
        degenerate_share=budget.degenerate_share,
    )


@dataclass(frozen=True)
class TextLosses:
    """Losses of N texts with R ColBERT rows in all; arrays of no rows for a dense-only model.

    Attributes:
        dense: (N,) of the dense vector.
        sparse: (N,) of the lexical weights.
        colbert: (R,) of each row.
        text_of_row: (R,) the index of the row's text, ascending.
        is_degenerate: (N,) texts that only `degenerate_share` looks at.
    """

    dense: Floats
    sparse: Floats
    colbert: Floats
    text_of_row: NDArray[np.int64]
    is_degenerate: NDArray[np.bool_]

    def figures(self, dense_min_limit: float) -> Losses:
        """The figures of a budget.

        Args:
            dense_min_limit: a degenerate text counts where its dense loss is above.
        """
        return self._figures(np.flatnonzero(~self.is_degenerate), dense_min_limit)

    def upper_bounds(self, dense_min_limit: float, rng: np.random.Generator) -> Losses:
        """Figures that other texts of the same kind will hardly exceed: a bootstrap over texts.

        The worst text and the share of degenerate texts are taken as they are: resampling says nothing about a maximum.
        """
        natural = np.flatnonzero(~self.is_degenerate)
        draws = [self._figures(rng.choice(natural, natural.size), dense_min_limit) for _ in range(DRAWS)]
        bounds = {
            name: float(np.quantile([getattr(draw, name) for draw in draws], CONFIDENCE))
            for name in ("dense_mean", "colbert_p5", "sparse_jaccard")
        }
        measured = self.figures(dense_min_limit)
        return Losses(dense_min=measured.dense_min, degenerate_share=measured.degenerate_share, **bounds)

    def _figures(self, texts: NDArray[np.int64], dense_min_limit: float) -> Losses:
        weights = np.bincount(texts, minlength=self.dense.size)[self.text_of_row]
        degenerate = self.dense[self.is_degenerate]
        return Losses(
            dense_mean=float(self.dense[texts].mean()),
            dense_min=float(self.dense[texts].max()),
            colbert_p5=_weighted_quantile(self.colbert, weights, 0.95) if self.colbert.size else 0.0,
            sparse_jaccard=float(self.sparse[texts].mean()) if self.sparse.size else 0.0,
            degenerate_share=float((degenerate > dense_min_limit).mean()) if degenerate.size else 0.0,
        )


def _weighted_quantile(values: Floats, weights: NDArray[np.int64], share: float) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(reached, share * reached[-1])]])


def joined(first: TextLosses, second: TextLosses) -> TextLosses:
    """The losses of two sets of texts as those of one."""
    return TextLosses(
        dense=np.concatenate([first.dense, second.dense]),
        sparse=np.concatenate([first.sparse, second.sparse]),
        colbert=np.concatenate([first.colbert, second.colbert]),
        text_of_row=np.concatenate([first.text_of_row, second.text_of_row + first.dense.size]),
        is_degenerate=np.concatenate([first.is_degenerate, second.is_degenerate]),
    )
