"""The published numbers of the real BAAI/bge-m3, compared with a bundle of it.

The figures are facts printed by FlagEmbedding's own tutorial ("1.2.4 BGE-M3", FP32), restated here; the fp16 numbers of
its README differ from them by up to 5e-4 and are not used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from m3_runtime import M3Encoder
from m3_runtime.bundle.manifest import Head, Manifest
from m3_runtime.cli.interrupt import interruptible
from m3_runtime.errors import HeadError

QUERIES = ("What is BGE M3?", "Defination of BM25")
PASSAGES = (
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms "
    "appearing in each document",
)
DENSE = ((0.6259035, 0.34749585), (0.349868, 0.6782462))
LEXICAL_WEIGHTS: tuple[Mapping[str, float], ...] = (
    {
        "What": 0.08362077, "is": 0.081469566, "B": 0.12964639, "GE": 0.25186998, "M": 0.17001738, "3": 0.26957875,
        "?": 0.040755156,
    },
    {"De": 0.050144322, "fin": 0.13689369, "ation": 0.045134712, "of": 0.06342201, "BM": 0.25167602, "25": 0.33353207},
)  # fmt: skip
LEXICAL_SCORES = (0.19554448500275612, 0.00880391988903284)  # first query with each passage
COLBERT_SCORES = (0.7796662449836731, 0.4621177911758423)
COLBERT_ROWS = (8, 30)  # first query, first passage

# The published run is FP32 on unknown hardware: 1e-4 is its own noise and ours. INT8 is held to its usual distance.
TOLERANCE = {"fp32": 1e-4, "int8": 2e-2}


@dataclass(frozen=True)
class Check:
    """One published number and what the bundle gives."""

    name: str
    published: float
    measured: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the two agree; a NaN does not."""
        return abs(self.published - self.measured) <= self.tolerance


@dataclass(frozen=True)
class GoldenResult:
    """All checks, or the reason why there was nothing to check."""

    variant: str
    skipped: str | None
    checks: tuple[Check, ...]

    @property
    def failed(self) -> bool:
        """Whether a number is off."""
        return any(not check.holds for check in self.checks)


def verify_golden(bundle: Path, variant: str, *, force: bool = False) -> GoldenResult:
    """Compare one variant of a bundle; one that does not say it is of BAAI/bge-m3 is skipped unless `force` is on.

    Raises:
        M3Error: the bundle does not open, or has no such variant.
        HeadError: the bundle is dense-only.
    """
    with interruptible(partial(M3Encoder.open, bundle, variant=variant)) as encoder:
        if not force and (reason := why_not(encoder.bundle.manifest)):
            return GoldenResult(variant, reason, ())
        return GoldenResult(variant, None, compare(encoder))


def why_not(manifest: Manifest) -> str | None:
    """Why the published numbers say nothing about this bundle, or None if they do."""
    if manifest.source.name.lower() not in ("baai/bge-m3", "bge-m3"):
        return (
            f"the bundle is of {manifest.source.name!r}; the published numbers are of BAAI/bge-m3's own weights "
            "(export those with: m3-export BAAI/bge-m3 OUT; if these are they, under another name: --force)"
        )
    return None


def compare(encoder: M3Encoder) -> tuple[Check, ...]:
    """Every published number next to the encoder's."""
    if Head.SPARSE not in encoder.bundle.manifest.heads:
        raise HeadError("the bundle is dense-only; the published numbers need all three heads")
    tolerance = TOLERANCE[encoder.variant.precision]
    texts = [*QUERIES, *PASSAGES]
    found = encoder.encode(texts, max_length=100, return_sparse=True, return_colbert_vecs=True)
    dense, sparse, colbert = found.dense_vecs, found.lexical_weights, found.colbert_vecs
    assert isinstance(dense, np.ndarray) and isinstance(sparse, list) and isinstance(colbert, list)
    rows: list[tuple[str, float, float]] = []
    for q, p in np.ndindex(2, 2):
        rows.append((f"dense Q{q + 1} P{p + 1}", DENSE[q][p], float(dense[q] @ dense[2 + p])))
    for q in range(2):
        weights = _by_word(encoder, sparse[q])
        words = {**dict.fromkeys(weights, 0.0), **LEXICAL_WEIGHTS[q]}  # an extra word is a difference too
        rows += [(f"weight Q{q + 1} {word!r}", value, weights.get(word, 0.0)) for word, value in words.items()]
    for p in range(2):
        lexical = float(encoder.compute_lexical_matching_score(sparse[0], sparse[2 + p]))
        rows.append((f"lexical Q1 P{p + 1}", LEXICAL_SCORES[p], lexical))
        rows.append((f"ColBERT Q1 P{p + 1}", COLBERT_SCORES[p], encoder.colbert_score(colbert[0], colbert[2 + p])))
    rows += [(f"ColBERT rows {n}", COLBERT_ROWS[i], len(colbert[k])) for i, (n, k) in enumerate((("Q1", 0), ("P1", 2)))]
    return tuple(Check(name, published, measured, tolerance) for name, published, measured in rows)


def _by_word(encoder: M3Encoder, weights: Mapping[str, float]) -> dict[str, float]:
    """FlagEmbedding's `convert_id_to_token` on one text."""
    return {encoder.tokenizer.decode([int(token)]): float(weight) for token, weight in weights.items()}


def golden_json(result: GoldenResult) -> dict[str, Any]:
    """The result as JSON values."""
    checks = [
        {"name": c.name, "published": c.published, "measured": c.measured, "holds": c.holds} for c in result.checks
    ]
    return {"variant": result.variant, "skipped": result.skipped, "failed": result.failed, "checks": checks}


def golden_text(result: GoldenResult) -> str:
    """The result for people."""
    if result.skipped:
        return f"SKIPPED: {result.skipped}\n"
    lines = [
        f"{'ok ' if c.holds else 'OFF'}  {c.name:<20} published {c.published:.7f}  measured {c.measured:.7f}"
        for c in result.checks
    ]
    held = sum(check.holds for check in result.checks)
    return "\n".join([*lines, f"{held} of {len(result.checks)} published numbers hold for {result.variant}", ""])
