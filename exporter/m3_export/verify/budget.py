"""The budget: the largest difference from PyTorch FP32 with which a variant may ship, of an encoder or a reranker."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from m3_export.errors import OptionsError
from m3_runtime.bundle.manifest import Parity, ScoreParity


class _Written:
    """How both kinds of budget are written."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `strict`, or `dense_mean=0.9995,sparse_jaccard=0.98`, or a name and changes to it.

        What is not named is as in `balanced`, or in the budget that is named first.

        Raises:
            OptionsError: an unknown name, or a value that is not a number from -1 (of a reranker from 0) to 1.

        >>> Budget.parse("strict,dense_min=0.999").to_text()
        'dense_mean=0.9998,dense_min=0.999,colbert_p5=0.999,sparse_jaccard=0.99,degenerate_share=0.001'
        >>> ScoreBudget.parse("strict,score_max=0.1").to_text()
        'score_p99=0.02,score_max=0.1,top1=0.99,degenerate_share=0.001'
        """
        is_score = issubclass(cls, ScoreBudget)
        named: Mapping[str, Any] = SCORE_BUDGETS if is_score else BUDGETS
        parts = [part.strip() for part in text.split(",") if part.strip()]
        name = parts.pop(0) if parts and "=" not in parts[0] else "balanced"
        if name not in named:
            raise OptionsError(f"there is no budget {name!r}; expected {', '.join(named)}, or NAME=VALUE,…")
        names = [f.name for f in fields(named[name])]
        changes: dict[str, float] = {}
        for entry, _, value in (part.partition("=") for part in parts):
            if (known := entry.strip()) not in names:
                what = "the budget of a reranker" if is_score else "the budget"
                raise OptionsError(f"{what} has no entry {known!r}; it has: {', '.join(names)}")
            changes[known] = _number(known, value, 0 if is_score else -1)
        found: Self = replace(named[name], **changes)
        return found

    def to_text(self) -> str:
        """The form that `parse` reads."""
        return ",".join(f"{name}={value}" for name, value in vars(self).items())


@dataclass(frozen=True)
class Budget(_Written):
    """Lowest accepted parity of an INT8 variant, per head; the defaults are the budget `balanced`.

    `degenerate_share` is the largest accepted share of degenerate texts (one character, a word repeated, digits …)
    whose dense cosine is below `dense_min`.
    """

    dense_mean: float = 0.9993
    dense_min: float = 0.998
    colbert_p5: float = 0.996
    sparse_jaccard: float = 0.98
    degenerate_share: float = 0.005

    @property
    def least_similarity(self) -> float:
        """What every text must reach, degenerate ones but for their share: the dense cosine to the reference."""
        return self.dense_min


@dataclass(frozen=True)
class ScoreBudget(_Written):
    """Largest accepted differences of an INT8 reranker; the defaults are the budget `balanced`.

    Differences of scores before the sigmoid are in parts of the spread, the standard deviation of the reference's
    scores over the probe pairs. `score_p99` is the 99th percentile, `score_max` the largest one. `top1` is the lowest
    accepted share of queries whose best passage stays the best, but for those whose two best are a near tie in FP32.
    `degenerate_share` is the largest accepted share of degenerate pairs whose difference is above `score_max`.
    """

    score_p99: float = 0.05
    score_max: float = 0.15
    top1: float = 0.98
    degenerate_share: float = 0.005

    @property
    def least_similarity(self) -> float:
        """What every pair must reach, degenerate ones but for their share: 1 - (difference ÷ spread)²."""
        return 1 - self.score_max**2


AnyBudget = Budget | ScoreBudget

BUDGETS: Mapping[str, Budget] = {
    "strict": Budget(
        dense_mean=0.9998, dense_min=0.9995, colbert_p5=0.999, sparse_jaccard=0.99, degenerate_share=0.001
    ),
    "balanced": Budget(),
    "fast": Budget(dense_mean=0.998, dense_min=0.994, colbert_p5=0.99, sparse_jaccard=0.96, degenerate_share=0.01),
}


SCORE_BUDGETS: Mapping[str, ScoreBudget] = {
    "strict": ScoreBudget(score_p99=0.02, score_max=0.06, top1=0.99, degenerate_share=0.001),
    "balanced": ScoreBudget(),
    "fast": ScoreBudget(score_p99=0.1, score_max=0.3, top1=0.95, degenerate_share=0.01),
}


def check_budget(text: str) -> str:
    """The text of a budget, of an encoder or a reranker: which it is shows when the checkpoint is read.

    Raises:
        OptionsError: it is of neither.
    """
    try:
        Budget.parse(text)
    except OptionsError as of_encoder:
        try:
            ScoreBudget.parse(text)
        except OptionsError as of_reranker:
            entries = {f.name for f in fields(ScoreBudget)}
            is_score = any(part.partition("=")[0].strip() in entries for part in text.split(","))
            raise of_reranker if is_score else of_encoder from None
    return text


@dataclass(frozen=True)
class Excess:
    """One measured figure that is outside its budget."""

    figure: str
    measured: float
    limit: float

    def __str__(self) -> str:
        return f"{self.figure}: measured {self.measured:.6g}, budget {self.limit:.6g}"


# Arithmetic noise of a faithful FP32 graph; anything above it is a wrong graph, whatever the budget says.
FP32_DENSE_MAX_ABS = 1e-5
FP32_TOKEN_WEIGHT_MAX_ABS = 1e-5
FP32_COLBERT_MAX_ABS = 1e-4
FP32_SCORE_MAX = 1e-4  # before the sigmoid
FP32_COSINE = 0.999999  # instead of the bounds above, which are for unit vectors, where nothing is normalised
BATCH_INVARIANCE = 0.99999  # of any variant: a text's vectors may not depend on its batch


def excesses(parity: Parity, budget: AnyBudget, precision: str, *, normalize: bool) -> tuple[Excess, ...]:
    """What is over budget. FP32 variants are held to arithmetic noise instead of the budget."""
    if isinstance(budget, ScoreBudget):
        assert parity.score is not None
        at_least, at_most = _of_scores(parity.score, budget, precision)
    else:
        at_least, at_most = _of_vectors(parity, budget, precision, normalize=normalize)
    if precision != "fp32" and (degenerate := parity.degenerate):
        figure = f"share of {degenerate.in_words(is_reranker=isinstance(budget, ScoreBudget))}"
        at_most.append(Excess(figure, degenerate.below / degenerate.texts, budget.degenerate_share))
    if not parity.is_simulated:  # sums of floats depend on their order, sums of integers do not
        at_least.append(Excess("batch invariance", parity.batch_invariance_min, BATCH_INVARIANCE))
    what = "similarity of scores" if isinstance(budget, ScoreBudget) else "dense cosine"
    padded_min = FP32_COSINE if precision == "fp32" else budget.least_similarity
    at_least.append(Excess(f"{what} min, padded", parity.padded_dense_min, padded_min))
    # "not >=" rather than "<": a NaN is over every budget
    too_low = (figure for figure in at_least if not figure.measured >= figure.limit)
    return (*too_low, *(figure for figure in at_most if not figure.measured <= figure.limit))


def _of_scores(score: ScoreParity, budget: ScoreBudget, precision: str) -> tuple[list[Excess], list[Excess]]:
    """A reranker's figures: what has to be at least its limit, and at most."""
    if precision == "fp32":
        return [], [Excess("score difference max", score.difference_max, FP32_SCORE_MAX)]
    _, p99, most = score.in_spreads
    return [Excess("top-1 agreement, near ties aside", score.top1_same_near_ties_aside, budget.top1)], [
        Excess("score difference p99 ÷ spread", p99, budget.score_p99),
        Excess("score difference max ÷ spread", most, budget.score_max),
    ]


def _of_vectors(
    parity: Parity, budget: Budget, precision: str, *, normalize: bool
) -> tuple[list[Excess], list[Excess]]:
    """An encoder's figures: what has to be at least its limit, and at most."""
    dense, sparse, colbert = parity.dense, parity.sparse, parity.colbert
    assert dense is not None
    at_least: list[Excess] = []
    at_most: list[Excess] = []
    if precision != "fp32":
        at_least += [
            Excess("dense cosine mean", dense.cosine_mean, budget.dense_mean),
            Excess("dense cosine min", dense.cosine_min, budget.dense_min),
        ]
        if colbert:
            at_least.append(Excess("ColBERT token cosine p5", colbert.cosine_p5, budget.colbert_p5))
        if sparse:
            at_least.append(Excess("sparse weighted Jaccard mean", sparse.jaccard_mean, budget.sparse_jaccard))
    elif normalize:
        at_most.append(Excess("dense max abs", dense.max_abs, FP32_DENSE_MAX_ABS))
        if sparse:
            at_most.append(Excess("token weights max abs", sparse.max_abs, FP32_TOKEN_WEIGHT_MAX_ABS))
        if colbert:
            at_most.append(Excess("ColBERT max abs", colbert.max_abs, FP32_COLBERT_MAX_ABS))
    else:
        at_least.append(Excess("dense cosine min", dense.cosine_min, FP32_COSINE))
        if colbert:
            at_least.append(Excess("ColBERT token cosine min", colbert.cosine_min, FP32_COSINE))
    return at_least, at_most


def _number(name: str, value: str, least: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not least <= number <= 1.0:
        raise OptionsError(f"budget {name}: expected a number between {least:g} and 1, got {value!r}")
    return number
