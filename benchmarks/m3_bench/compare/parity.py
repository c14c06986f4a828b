"""A contender's vectors against the reference's, per head and per text."""

import numpy as np
from numpy.typing import NDArray

from m3_bench.documents import Compared, TextParity
from m3_bench.errors import DocumentError
from m3_export.verify.parity import Outputs, colbert_parity, dense_parity, sparse_parity, weighted_jaccard

_DIGITS = 8  # as the parity of manifests; below it lies the order in which threads add


def compared(run: int, contender: str, reference: Outputs, outputs: Outputs, where: str) -> Compared:
    """Parity of all heads that both have.

    Args:
        run: the run's number, from 0.
        contender: its name.
        reference: N texts.
        outputs: the same N texts.
        where: names the outputs in errors.

    Raises:
        DocumentError: texts, dimensions or rows are not those of the reference.
    """
    check_shapes(reference, outputs, where)
    return Compared(
        run=run,
        contender=contender,
        dense=dense_parity(reference, outputs),
        sparse=sparse_parity(reference, outputs),
        colbert=colbert_parity(reference, outputs),
        texts=text_parity(reference, outputs),
    )


def check_shapes(reference: Outputs, outputs: Outputs, where: str) -> None:
    """Refuse vectors that cannot be of the same texts by the same model.

    Raises:
        DocumentError: see `compared`.
    """
    expected, got = reference.dense.shape, outputs.dense.shape
    if not expected[0]:
        raise DocumentError("the reference holds no texts; record it again with some")
    if expected[0] != got[0]:
        raise DocumentError(f"{where} has vectors of {got[0]} texts, the reference of {expected[0]}; run it again")
    if expected != got:
        raise DocumentError(f"{where} has dense vectors of {got[1]} numbers, the reference of {expected[1]}")
    if reference.colbert is None or outputs.colbert is None:
        return
    for number, (rows, theirs) in enumerate(zip(reference.colbert, outputs.colbert, strict=True)):
        if rows.shape != theirs.shape:
            raise DocumentError(
                f"{where}: text {number} has ColBERT vectors of shape {theirs.shape}, the reference {rows.shape}; "
                "the tokenizer or its limit differs: run with the reference's checkpoint and length"
            )


def text_parity(reference: Outputs, outputs: Outputs) -> TextParity:
    """Distances of each text; see `TextParity` for shapes."""
    jaccard: list[float] = []
    if reference.lexical is not None and outputs.lexical is not None:
        jaccard = [weighted_jaccard(a, b) for a, b in zip(reference.lexical, outputs.lexical, strict=True)]
    colbert: list[float] = []
    if reference.colbert is not None and outputs.colbert is not None:
        pairs = zip(reference.colbert, outputs.colbert, strict=True)
        colbert = [float(_cosines(a, b).mean()) if len(a) else 1.0 for a, b in pairs]
    return TextParity(_rounded(_cosines(reference.dense, outputs.dense)), _rounded(jaccard), _rounded(colbert))


def _rounded(values: list[float] | NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), _DIGITS) for value in values)


def _cosines(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Of each row, in float64: (N, H) and (N, H) to (N,)."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    found: NDArray[np.float64] = (x * y).sum(axis=1) / np.maximum(lengths, 1e-24)
    return found
