"""The budget: the most difference from PyTorch FP32 that a variant may have and still ship."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from m3_export.errors import RecipeError
from m3_runtime.bundle.manifest import Parity


@dataclass(frozen=True)
class Budget:
    """Lowest accepted parity of an INT8 variant, per head; the defaults are the budget `balanced`.

    `degenerate_share` is the largest accepted share of degenerate texts (one character, a word repeated, digits …)
    whose dense cosine is below `dense_min`.
    """

    dense_mean: float = 0.9993
    dense_min: float = 0.998
    colbert_p5: float = 0.996
    sparse_jaccard: float = 0.98
    degenerate_share: float = 0.005

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read `strict`, or `dense_mean=0.9995,sparse_jaccard=0.98`, or a name and changes to it.

        What is not named is as in `balanced`, or in the budget that is named first.

        Raises:
            RecipeError: an unknown name, or a value that is no number between -1 and 1.

        >>> Budget.parse("dense_min=0.997").dense_min
        0.997
        >>> Budget.parse("strict,dense_min=0.999").to_text()
        'dense_mean=0.9998,dense_min=0.999,colbert_p5=0.999,sparse_jaccard=0.99,degenerate_share=0.001'
        """
        parts = [part.strip() for part in text.split(",") if part.strip()]
        base = cls()
        if parts and "=" not in parts[0]:
            base = _named(parts.pop(0))
        names = [f.name for f in fields(cls)]
        changes: dict[str, float] = {}
        for part in parts:
            name, _, value = part.partition("=")
            if name.strip() not in names:
                raise RecipeError(f"the budget has no entry {name.strip()!r}; it has: {', '.join(names)}")
            changes[name.strip()] = _cosine(name, value)
        return replace(base, **changes)

    def to_text(self) -> str:
        """The form that `parse` reads."""
        return ",".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))


BUDGETS = {
    "strict": Budget(
        dense_mean=0.9998, dense_min=0.9995, colbert_p5=0.999, sparse_jaccard=0.99, degenerate_share=0.001
    ),
    "balanced": Budget(),
    "fast": Budget(dense_mean=0.998, dense_min=0.994, colbert_p5=0.99, sparse_jaccard=0.96, degenerate_share=0.01),
}


def _named(name: str) -> Budget:
    if name not in BUDGETS:
        raise RecipeError(f"no budget is called {name!r}; there are: {', '.join(BUDGETS)}, or NAME=VALUE,…")
    return BUDGETS[name]


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


FP32_COSINE = 0.999999  # instead of the bounds above, which are for unit vectors, where nothing is normalised
BATCH_INVARIANCE = 0.99999  # of any variant: a text's vectors may not depend on its neighbours


def excesses(parity: Parity, budget: Budget, precision: str, *, normalize: bool) -> tuple[Excess, ...]:
    """What is over budget. FP32 variants are held to arithmetic noise instead of the budget."""
    if precision != "fp32":
        return (*_too_low(_int8_figures(parity, budget)), *_degenerate(parity, budget))
    at_most = _fp32_differences(parity) if normalize else ()
    at_least = () if normalize else _fp32_cosines(parity)
    return (*(e for e in at_most if not e.measured <= e.limit), *_too_low([*at_least, *_company(parity, FP32_COSINE)]))


def _too_low(figures: Sequence[Excess]) -> tuple[Excess, ...]:
    # "not >=" rather than "<": a NaN is over every budget
    return tuple(figure for figure in figures if not figure.measured >= figure.limit)


def _company(parity: Parity, padded_min: float) -> list[Excess]:
    padded = Excess("dense cosine min, padded", parity.padded_dense_min, padded_min)
    if parity.is_simulated:  # sums of floats depend on their order, sums of integers do not: nothing to learn here
        return [padded]
    return [Excess("batch invariance", parity.batch_invariance_min, BATCH_INVARIANCE), padded]


def _int8_figures(parity: Parity, budget: Budget) -> list[Excess]:
    figures = [
        Excess("dense cosine mean", parity.dense.cosine_mean, budget.dense_mean),
        Excess("dense cosine min", parity.dense.cosine_min, budget.dense_min),
    ]
    if parity.colbert:
        figures.append(Excess("ColBERT token cosine p5", parity.colbert.cosine_p5, budget.colbert_p5))
    if parity.sparse:
        figures.append(Excess("sparse weighted Jaccard mean", parity.sparse.jaccard_mean, budget.sparse_jaccard))
    return [*figures, *_company(parity, budget.dense_min)]


def _degenerate(parity: Parity, budget: Budget) -> tuple[Excess, ...]:
    if parity.degenerate is None:
        return ()
    figure = f"share of {parity.degenerate.texts} degenerate texts below {parity.degenerate.below_what:g}"
    share = Excess(figure, parity.degenerate.below / parity.degenerate.texts, budget.degenerate_share)
    return () if share.measured <= share.limit else (share,)


def _fp32_differences(parity: Parity) -> list[Excess]:
    figures = [Excess("dense max abs", parity.dense.max_abs, FP32_DENSE_MAX_ABS)]
    if parity.sparse:
        figures.append(Excess("token weights max abs", parity.sparse.max_abs, FP32_TOKEN_WEIGHT_MAX_ABS))
    if parity.colbert:
        figures.append(Excess("ColBERT max abs", parity.colbert.max_abs, FP32_COLBERT_MAX_ABS))
    return figures


def _fp32_cosines(parity: Parity) -> list[Excess]:
    figures = [Excess("dense cosine min", parity.dense.cosine_min, FP32_COSINE)]
    if parity.colbert:
        figures.append(Excess("ColBERT token cosine min", parity.colbert.cosine_min, FP32_COSINE))
    return figures


def _cosine(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not -1.0 <= number <= 1.0:
        raise RecipeError(f"budget {name}: expected a number between -1 and 1, got {value!r}")
    return number
