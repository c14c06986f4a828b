"""Which variants hold their bundle's budget: on the probe texts, and on texts that nobody has tuned anything on."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from m3_bench.bars.contenders import Setup, bundle_of, command_of
from m3_bench.bars.rows import ALL_HEADS, Planned
from m3_bench.bars.unseen import degenerate_texts, natural_texts
from m3_bench.worker_process import WorkerProcess
from m3_bench.workers.messages import Keep
from m3_bench.workers.vectors import Vectors, read_vectors
from m3_export.arrays import Float32Array
from m3_export.verify.budget import Budget, excesses
from m3_export.verify.parity import Outputs, colbert_parity, dense_parity, sparse_parity
from m3_runtime.bundle.manifest import Parity

FP32 = "onnx-fp32"


@dataclass(frozen=True)
class Held:
    """A variant's parity, and what of it is outside its budget; it holds where `excesses` is empty.

    Attributes:
        natural: on texts in languages.
        degenerate: dense cosines on texts that are no language.
        excesses: figures over budget, in words.
    """

    natural: Parity
    degenerate: tuple[float, ...]
    excesses: tuple[str, ...]


def holding(variants: Iterable[Planned], setup: Setup) -> Mapping[Planned, Held]:
    """Each variant against the FP32 variant of the bundle that is measured, by the budget that its bundle was given.

    Raises:
        M3Error: a bundle has no such variant, or it failed.
    """
    variants = tuple(variants)
    if not variants:
        return {}
    natural, degenerate = natural_texts(), degenerate_texts()
    reference = _outputs(Planned("", FP32), (*natural, *degenerate), setup)
    budget = Budget.parse(setup.bundle.manifest.recipe["budget"])
    return {
        one: _held(one, reference, _outputs(one, (*natural, *degenerate), setup), len(natural), budget, setup)
        for one in variants
    }


def _held(one: Planned, reference: Outputs, found: Outputs, natural: int, budget: Budget, setup: Setup) -> Held:
    manifest = bundle_of(one, setup).manifest
    probed, precision = (
        manifest.parity[one.variant],
        next(v for v in manifest.variants if v.name == one.variant).precision,
    )
    expected, got = _part(reference, slice(natural)), _part(found, slice(natural))
    parity = replace(
        probed,
        texts=natural,
        dense=dense_parity(expected, got),
        sparse=sparse_parity(expected, got),
        colbert=colbert_parity(expected, got),
    )
    cosines = tuple(_cosine(a, b) for a, b in zip(reference.dense[natural:], found.dense[natural:], strict=True))
    over = [
        f"{where}: {excess}"
        for where, measured in (("probe texts", probed), ("other texts", parity))
        for excess in excesses(measured, budget, precision, normalize=manifest.normalize)
    ]
    below = sum(not cosine >= budget.dense_min for cosine in cosines)
    if below > budget.degenerate_share * len(cosines):
        over.append(f"{below} of {len(cosines)} degenerate texts below {budget.dense_min}, lowest {min(cosines):.4f}")
    return Held(parity, cosines, tuple(over))


def _cosine(a: Float32Array, b: Float32Array) -> float:
    return float(np.dot(a.astype(np.float64), b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def _part(outputs: Outputs, texts: slice) -> Outputs:
    lexical, colbert = outputs.lexical, outputs.colbert
    return Outputs(outputs.dense[texts], lexical and lexical[texts], colbert and colbert[texts])


def _outputs(one: Planned, texts: tuple[str, ...], setup: Setup) -> Outputs:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        path = Path(folder) / "vectors.npz"
        with WorkerProcess.start(str(one), command_of(one, setup), setup.threads, errors) as worker:
            worker.keep(Keep(texts, ALL_HEADS, str(path)))
        vectors: Vectors = read_vectors(path)
    return Outputs(vectors.dense, vectors.lexical, vectors.colbert)
