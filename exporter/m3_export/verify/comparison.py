"""What models of either kind give, vectors or scores of pairs, and how far two models of one kind differ."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from m3_export.arrays import Float32Array
from m3_export.plan.losses import LossesByText
from m3_runtime.encode.encoding import Encoding

DIGITS = 8  # stored; smaller differences are those of the order in which threads add


class ModelOutputs(ABC):
    """What a model gives for N texts, or N pairs of them."""

    @property
    @abstractmethod
    def pooled(self) -> Float32Array:
        """What is read of one token of each text: (N, H) dense vectors, or (N,) scores."""

    @abstractmethod
    def pooled_similarities(self, expected: Float32Array, got: Float32Array) -> NDArray[np.float64]:
        """(N,) 1 where a text is exact: the dense cosine, or 1 - (difference of the score ÷ spread)²."""

    @abstractmethod
    def like(self, encoding: Encoding) -> Self:
        """What the runtime gives for the same texts."""

    @abstractmethod
    def losses(self, variant: Self, *, is_degenerate: bool) -> LossesByText:
        """The comparison with a variant text by text."""

    @abstractmethod
    def parity(self, variant: Self) -> Mapping[str, Any]:
        """The figures of each head by its field of `Parity`; None for a head that one of the two lacks."""

    def similarities(self, variant: Self) -> NDArray[np.float64]:
        """`pooled_similarities` of all texts."""
        return self.pooled_similarities(self.pooled, variant.pooled)


def rounded(value: float | np.floating) -> float:
    """A figure as it is stored."""
    return round(float(value), DIGITS)
