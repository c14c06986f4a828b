"""Scores of heads added up with weights."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.errors import InputError

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Hybrid:
    """Scores of heads, each times a weight, added up; without a weight for ColBERT it is of dense and sparse."""

    dense: float  # weight of the dense cosine
    sparse: float  # weight of the lexical score
    colbert: float | None = None  # weight of ColBERT's score; None leaves the head out
    source: str = ""  # who published these weights; empty for your own

    @property
    def name(self) -> str:
        """The heads and the weights.

        >>> Hybrid(1, 0.3).name, Hybrid(0.15, 0.5, 0.35).name
        ('dense+sparse 1/0.3', 'all 0.15/0.5/0.35')
        """
        numbers = "/".join(f"{weight:g}" for weight in self.weights)
        return f"{'dense+sparse' if self.colbert is None else 'all'} {numbers}"

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights in the order dense, sparse, ColBERT."""
        return (self.dense, self.sparse) if self.colbert is None else (self.dense, self.sparse, self.colbert)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that are added up."""
        return ENCODER_HEADS[: len(self.weights)]

    def fused(self, dense: FloatArray, sparse: FloatArray, colbert: FloatArray | None = None) -> FloatArray:
        """The sum, of arrays of one shape; as in the published scripts it is not divided, which changes no order."""
        total = self.dense * dense + self.sparse * sparse
        if self.colbert is not None:
            assert colbert is not None
            total = total + self.colbert * colbert
        return np.asarray(total, dtype=np.float32)


PUBLISHED = (
    Hybrid(1.0, 0.3, source="MKQA"),
    Hybrid(0.2, 0.8, source="MLDR"),
    Hybrid(1.0, 0.3, 1.0, source="MKQA, and FlagEmbedding's examples"),
    Hybrid(0.15, 0.5, 0.35, source="MLDR"),
    Hybrid(0.4, 0.2, 0.4, source="BGE-M3's README"),
)
"""FlagEmbedding's weights, by where it uses them."""


def parse_weights(text: str) -> Hybrid:
    """Two numbers (dense, sparse) or three (and ColBERT) between commas.

    >>> parse_weights("1, 0.3").name
    'dense+sparse 1/0.3'

    Raises:
        InputError: something else, or nothing above 0.
    """
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise InputError(f"--weights {text}: expected numbers between commas, as in 1,0.3,1") from error
    if len(numbers) not in (2, 3):
        raise InputError(f"--weights {text}: expected dense,sparse or dense,sparse,colbert, got {len(numbers)} numbers")
    if not all(np.isfinite(numbers)) or min(numbers) < 0 or sum(numbers) == 0:
        raise InputError(f"--weights {text}: weights must be 0 or more, and one above 0")
    return Hybrid(numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else None)


def possible(hybrids: Collection[Hybrid], heads: Collection[Head]) -> tuple[Hybrid, ...]:
    """Those whose heads are all there."""
    return tuple(hybrid for hybrid in hybrids if set(hybrid.heads) <= set(heads))
