"""The budget: the largest difference from PyTorch FP32 with which a variant may ship."""

from dataclasses import dataclass, fields, replace

from m3_export.errors import OptionsError
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
            OptionsError: an unknown name, or a value that is not a number from -1 to 1.

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
                raise OptionsError(f"the budget has no entry {name.strip()!r}; it has: {', '.join(names)}")
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
        raise OptionsError(f"there is no budget {name!r}; expected {', '.join(BUDGETS)}, or NAME=VALUE,…")
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
BATCH_INVARIANCE = 0.99999  # of any variant: a text's vectors may not depend on its batch


def excesses(parity: Parity, budget: Budget, precision: str, *, normalize: bool) -> tuple[Excess, ...]:
    """What is over budget. FP32 variants are held to arithmetic noise instead of the budget."""
    dense, sparse, colbert = parity.dense, parity.sparse, parity.colbert
    assert dense is not None  # an encoder's
    at_least, at_most = [], []
    if precision != "fp32":
        at_least += [
            Excess("dense cosine mean", dense.cosine_mean, budget.dense_mean),
            Excess("dense cosine min", dense.cosine_min, budget.dense_min),
        ]
        if colbert:
            at_least.append(Excess("ColBERT token cosine p5", colbert.cosine_p5, budget.colbert_p5))
        if sparse:
            at_least.append(Excess("sparse weighted Jaccard mean", sparse.jaccard_mean, budget.sparse_jaccard))
        if degenerate := parity.degenerate:
            figure = f"share of {degenerate.texts} degenerate texts below {degenerate.below_what:g}"
            at_most.append(Excess(figure, degenerate.below / degenerate.texts, budget.degenerate_share))
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
    if not parity.is_simulated:  # sums of floats depend on their order, sums of integers do not
        at_least.append(Excess("batch invariance", parity.batch_invariance_min, BATCH_INVARIANCE))
    padded_min = FP32_COSINE if precision == "fp32" else budget.dense_min
    at_least.append(Excess("dense cosine min, padded", parity.padded_dense_min, padded_min))
    # "not >=" rather than "<": a NaN is over every budget
    too_low = (figure for figure in at_least if not figure.measured >= figure.limit)
    return (*too_low, *(figure for figure in at_most if not figure.measured <= figure.limit))


def _cosine(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not -1.0 <= number <= 1.0:
        raise OptionsError(f"budget {name}: expected a number between -1 and 1, got {value!r}")
    return number
