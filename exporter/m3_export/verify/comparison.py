"""What a variant gives against what the reference gives, for models of either kind: vectors, or scores of pairs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_export.plan.losses import LossesByText, PairLosses, TextLosses
from m3_export.verify.parity import (
    Outputs,
    colbert_parity,
    dense_cosines,
    dense_parity,
    rounded,
    sparse_parity,
    text_losses,
)
from m3_export.verify.scores import Scores, pair_losses, score_parity
from m3_runtime.bundle.manifest import ColbertParity, DenseParity, ScoreParity, SparseParity

AnyOutputs = Outputs | Scores


@dataclass(frozen=True)
class HeadParity:
    """Figures of each head that there is, and the losses of every text behind them."""

    losses: LossesByText
    dense: DenseParity | None = None
    sparse: SparseParity | None = None
    colbert: ColbertParity | None = None
    score: ScoreParity | None = None


def head_parity(reference: AnyOutputs, variant: AnyOutputs) -> HeadParity:
    """Compare what two models of one kind give for natural texts, or pairs."""
    losses = losses_by_text(reference, variant, is_degenerate=False)
    if isinstance(reference, Scores) and isinstance(variant, Scores):
        return HeadParity(losses, score=score_parity(reference, variant))
    assert isinstance(reference, Outputs) and isinstance(variant, Outputs)
    return HeadParity(
        losses=losses,
        dense=dense_parity(reference, variant),
        sparse=sparse_parity(reference, variant),
        colbert=colbert_parity(reference, variant),
    )


def losses_by_text(reference: AnyOutputs, variant: AnyOutputs, *, is_degenerate: bool) -> TextLosses | PairLosses:
    """The same comparison text by text."""
    if isinstance(reference, Scores) and isinstance(variant, Scores):
        return pair_losses(reference, variant, is_degenerate=is_degenerate)
    assert isinstance(reference, Outputs) and isinstance(variant, Outputs)
    return text_losses(reference, variant, is_degenerate=is_degenerate)


def similarities(reference: AnyOutputs, variant: AnyOutputs) -> NDArray[np.float64]:
    """(N,) 1 where a text is exact: the dense cosine, or 1 - (difference of the score ÷ spread)²."""
    if isinstance(reference, Scores) and isinstance(variant, Scores):
        return 1 - reference.losses(variant)
    assert isinstance(reference, Outputs) and isinstance(variant, Outputs)
    return dense_cosines(reference, variant)


def lowest_similarity(reference: AnyOutputs, variant: AnyOutputs) -> float:
    """Lowest of `similarities`."""
    return rounded(similarities(reference, variant).min())
