"""What a plan loses on some texts, per text and token, and the figures that a budget limits.

Engine and simulation are compared with the exact model by the same code. A loss is 1 minus a figure that is 1 where all
is exact: 1 - cosine of dense vectors and of ColBERT rows, 1 - weighted Jaccard of lexical weights. A reranker's loss of
a pair is (difference of the score ÷ spread of the scores)², which adds up over projections as 1 - cosine does.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from m3_export.verify.budget import AnyBudget, ScoreBudget

Floats = NDArray[np.float64]
DRAWS = 400  # of the bootstrap
CONFIDENCE = 0.95  # one-sided


class Figures:
    """The figures of a budget as losses, each 0 where all is exact. The last one is `degenerate_share`."""

    degenerate_share: float

    @property
    def worst_text(self) -> float:
        """The largest loss of a natural text; as a limit, what degenerate texts are counted above."""
        raise NotImplementedError

    def as_array(self) -> Floats:
        """(F,) in the order of the fields."""
        return np.array([getattr(self, name) for name in self.names()])

    @classmethod
    def names(cls) -> list[str]:
        """The F figures."""
        return [f.name for f in fields(cls)]  # type: ignore[arg-type]  # every figure is a field of a dataclass

    def in_parts_of(self, limits: "Figures") -> Floats:
        """(F,) each loss divided by its limit: above 1 is over budget."""
        return self.as_array() / np.maximum(limits.as_array(), 1e-12)

    def worst(self, limits: "Figures") -> float:
        """The largest loss in parts of its limit: at most 1 is within."""
        return float(self.in_parts_of(limits).max())


@dataclass(frozen=True)
class Losses(Figures):
    """An encoder's figures."""

    dense_mean: float
    dense_min: float
    colbert_p5: float
    sparse_jaccard: float
    degenerate_share: float

    @property
    def worst_text(self) -> float:
        """See `Figures`."""
        return self.dense_min


@dataclass(frozen=True)
class ScoreFigures(Figures):
    """A reranker's figures; `score_p99` and `score_max` are in parts of the spread, not squared."""

    score_p99: float
    score_max: float
    top1: float
    degenerate_share: float

    @property
    def worst_text(self) -> float:
        """See `Figures`; a loss is squared."""
        return self.score_max**2


def limits_of(budget: AnyBudget) -> Figures:
    """The budget as the most that may be lost."""
    if isinstance(budget, ScoreBudget):
        return ScoreFigures(budget.score_p99, budget.score_max, 1 - budget.top1, budget.degenerate_share)
    return Losses(
        dense_mean=1 - budget.dense_mean,
        dense_min=1 - budget.dense_min,
        colbert_p5=1 - budget.colbert_p5,
        sparse_jaccard=1 - budget.sparse_jaccard,
        degenerate_share=budget.degenerate_share,
    )


class LossesByText(ABC):
    """Losses of N texts, or of N pairs of them.

    Attributes:
        is_degenerate: (N,) texts that only `degenerate_share` looks at.
    """

    is_degenerate: NDArray[np.bool_]

    @abstractmethod
    def figures(self, worst_text: float) -> Figures:
        """The figures of a budget.

        Args:
            worst_text: a degenerate text counts where its loss is above.
        """

    @abstractmethod
    def upper_bounds(self, worst_text: float, rng: np.random.Generator) -> Figures:
        """Figures that other texts of the same kind will hardly exceed: a bootstrap over texts.

        The worst text and the share of degenerate texts are taken as they are: resampling says nothing about a maximum.
        """

    @abstractmethod
    def additive(self) -> Floats:
        """(A,) one vector that adds up over projections, whose errors are nearly independent."""

    @abstractmethod
    def predicted(self, total: Floats, worst_text: float) -> Figures:
        """The figures of a sum of `additive` of the same texts, but for a factor.

        For the share of degenerate texts over the limit it is their mean loss, which drives it.

        Args:
            total: (A,) the sum.
            worst_text: the most that a degenerate text counts for.
        """

    @abstractmethod
    def joined(self, other: Self) -> Self:
        """These texts and others as one set."""


@dataclass(frozen=True)
class TextLosses(LossesByText):
    """An encoder's losses of N texts with R ColBERT rows in all; arrays of no rows for a dense-only model.

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

    def figures(self, worst_text: float) -> Losses:
        """See `LossesByText`."""
        return self._figures(np.flatnonzero(~self.is_degenerate), worst_text)

    def upper_bounds(self, worst_text: float, rng: np.random.Generator) -> Losses:
        """See `LossesByText`."""
        natural = np.flatnonzero(~self.is_degenerate)
        draws = [self._figures(rng.choice(natural, natural.size), worst_text) for _ in range(DRAWS)]
        bounds = {
            name: float(np.quantile([getattr(draw, name) for draw in draws], CONFIDENCE))
            for name in ("dense_mean", "colbert_p5", "sparse_jaccard")
        }
        measured = self.figures(worst_text)
        return Losses(dense_min=measured.dense_min, degenerate_share=measured.degenerate_share, **bounds)

    def additive(self) -> Floats:
        """See `LossesByText`: 1 - cosine is quadratic in the error, 1 - Jaccard is linear in it, so its square."""
        return np.concatenate([self.dense, self.sparse**2, self.colbert])

    def predicted(self, total: Floats, worst_text: float) -> Losses:
        """See `LossesByText`."""
        texts = self.dense.size
        dense, squares, colbert = np.split(total, [texts, texts + self.sparse.size])
        natural, strange = dense[~self.is_degenerate], np.minimum(dense[self.is_degenerate], worst_text)
        rows = colbert[~self.is_degenerate[self.text_of_row]]
        jaccard = np.sqrt(np.maximum(squares[~self.is_degenerate], 0)) if squares.size else squares
        return Losses(
            dense_mean=float(natural.mean()),
            dense_min=float(natural.max()),
            colbert_p5=float(np.quantile(rows, 0.95)) if rows.size else 0.0,
            sparse_jaccard=float(jaccard.mean()) if jaccard.size else 0.0,
            degenerate_share=float(strange.mean()) if strange.size else 0.0,
        )

    def joined(self, other: "TextLosses") -> "TextLosses":
        """See `LossesByText`."""
        return TextLosses(
            dense=np.concatenate([self.dense, other.dense]),
            sparse=np.concatenate([self.sparse, other.sparse]),
            colbert=np.concatenate([self.colbert, other.colbert]),
            text_of_row=np.concatenate([self.text_of_row, other.text_of_row + self.dense.size]),
            is_degenerate=np.concatenate([self.is_degenerate, other.is_degenerate]),
        )

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


@dataclass(frozen=True)
class PairLosses(LossesByText):
    """A reranker's losses of N pairs.

    Attributes:
        squares: (N,) (difference of the score ÷ spread)².
        is_degenerate: (N,) see `LossesByText`.
        top1: share of queries whose best passage is another one, near ties aside; 0 where nobody asks for an order.
    """

    squares: Floats
    is_degenerate: NDArray[np.bool_]
    top1: float = 0.0

    def figures(self, worst_text: float) -> ScoreFigures:
        """See `LossesByText`."""
        natural, strange = self.squares[~self.is_degenerate], self.squares[self.is_degenerate]
        return ScoreFigures(
            score_p99=_percentile_99(natural),
            score_max=float(np.sqrt(natural.max())),
            top1=self.top1,
            degenerate_share=float((strange > worst_text).mean()) if strange.size else 0.0,
        )

    def upper_bounds(self, worst_text: float, rng: np.random.Generator) -> ScoreFigures:
        """See `LossesByText`."""
        natural = self.squares[~self.is_degenerate]
        draws = [_percentile_99(rng.choice(natural, natural.size)) for _ in range(DRAWS)]
        return replace(self.figures(worst_text), score_p99=float(np.quantile(draws, CONFIDENCE)))

    def additive(self) -> Floats:
        """See `LossesByText`."""
        return self.squares

    def predicted(self, total: Floats, worst_text: float) -> ScoreFigures:
        """See `LossesByText`: of a few pairs the mean square says more than their largest differences."""
        natural, strange = total[~self.is_degenerate], np.minimum(total[self.is_degenerate], worst_text)
        size = float(np.sqrt(np.maximum(natural, 0).mean()))
        return ScoreFigures(size, size, 0.0, float(strange.mean()) if strange.size else 0.0)

    def joined(self, other: "PairLosses") -> "PairLosses":
        """See `LossesByText`; the order is that of these pairs."""
        return PairLosses(
            squares=np.concatenate([self.squares, other.squares]),
            is_degenerate=np.concatenate([self.is_degenerate, other.is_degenerate]),
            top1=self.top1,
        )


def _percentile_99(squares: Floats) -> float:
    return float(np.sqrt(np.percentile(squares, 99)))
