"""The stored documents, and seeded vectors for them, as tests want them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from m3_bench import documents
from m3_bench.documents import OutputsFile, Run
from m3_bench.recording import Recording, digest_of, write_outputs, write_recording
from m3_export.verify.parity import Outputs
from m3_runtime.bundle.reader import sha256_of

HERE = Path(__file__).parent
TEXTS = tuple(f"text number {n}" for n in range(48))
NOISE = {"openvino-int8": 0.03, "onnx-int8": 0.02, "onnx-fp32": 1e-4, "peer int8": 0.09, "PyTorch fp32": 0.0}
"""How far each contender's vectors are from the reference's."""
H, C = 64, 32


@dataclass(frozen=True)
class Written:
    """A reference and a run with vectors, on the disk."""

    reference: Path
    run: Path


def stored(name: str) -> Run:
    """A stored run."""
    return documents.read_as(Run, HERE / f"{name}.json")


def reference_outputs(texts: int = len(TEXTS)) -> Outputs:
    """Unit vectors and lexical weights, the same each time."""
    draws = np.random.default_rng(0)
    lengths = draws.integers(4, 20, texts)
    ids = [draws.choice(5000, int(length), replace=False) for length in lengths]
    weights = [draws.uniform(0.05, 0.4, len(row)) for row in ids]
    return Outputs(
        dense=_unit(draws.normal(size=(texts, H))),
        lexical=[
            dict(zip(row.tolist(), values.tolist(), strict=True)) for row, values in zip(ids, weights, strict=True)
        ],
        colbert=[_unit(draws.normal(size=(int(length), C))) for length in lengths],
    )


def disturbed(outputs: Outputs, noise: float, seed: int) -> Outputs:
    """The same with noise, as a variant has it."""
    draws = np.random.default_rng(seed)
    noises = noise * draws.lognormal(0, 0.5, len(outputs.dense))  # some texts are harder than others
    assert outputs.lexical is not None and outputs.colbert is not None
    return Outputs(
        dense=_unit(outputs.dense + noises[:, None] / np.sqrt(H) * draws.normal(size=outputs.dense.shape)),
        lexical=[
            {k: max(0.0, w * (1 + far * draws.normal())) for k, w in row.items()}
            for row, far in zip(outputs.lexical, noises, strict=True)
        ],
        colbert=[
            _unit(rows + far / np.sqrt(C) * draws.normal(size=rows.shape))
            for rows, far in zip(outputs.colbert, noises, strict=True)
        ],
    )


def write_reference(folder: Path, run: Run, outputs: Outputs | None = None, texts: Sequence[str] = TEXTS) -> Path:
    """A reference of a run."""
    path = folder / "gpu.safetensors"
    run = replace(run, texts_sha256=digest_of(texts))
    write_recording(Recording(run, tuple(texts), outputs or reference_outputs(len(texts))), path)
    return path


def write_run(folder: Path, run: Run, name: str = "run.json") -> Path:
    """A run whose contenders have vectors beside it."""
    kept = reference_outputs()
    contenders = []
    for number, who in enumerate(run.contenders):
        path = folder / f"{Path(name).stem}.{number}.safetensors"
        write_outputs(disturbed(kept, NOISE[who.name], number), path)
        contenders.append(replace(who, outputs=OutputsFile(path.name, sha256_of(path))))
    documents.write(replace(run, texts_sha256=digest_of(TEXTS), contenders=tuple(contenders)), folder / name)
    return folder / name


def write_both(folder: Path) -> Written:
    """The stored reference and run."""
    return Written(write_reference(folder, stored("gpu")), write_run(folder, stored("run")))


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)
