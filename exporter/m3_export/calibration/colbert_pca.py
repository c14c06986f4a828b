"""Principal axes of ColBERT rows: fewer dimensions that keep most of what rows differ in."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from m3_export.arrays import Float32Array, Ids
from m3_export.calibration.statistics import CALIBRATION_TOKENS
from m3_export.calibration.texts.text import Text
from m3_export.checkpoint.folder import Checkpoint
from m3_export.verify.reference import reference_outputs
from m3_runtime.bundle.reader import COLBERT_PCA
from m3_runtime.io.progress import Progress
from m3_runtime.tokenizer import M3Tokenizer

MOST_ROWS = 16_384
"""More than the built-in texts have. Half of mini-m3's dimensions lose 0.005 of nDCG@10 on XQuAD's English paragraphs
with axes of all these texts, and 0.020 with axes of a quarter of them."""


def write_colbert_pca(
    folder: Path, checkpoint: Checkpoint, tokenizer: M3Tokenizer, texts: Sequence[Text], progress: Progress
) -> None:
    """Write what `colbert_dim` projects on, of some calibration texts; nothing where there is no such head."""
    if checkpoint.geometry.colbert_dim is None:
        return
    longest = min(CALIBRATION_TOKENS, checkpoint.geometry.max_tokens)
    ids = thinned(tokenizer.encode_batch([text.text for text in texts], longest).ids)
    with progress.step(f"Principal axes of ColBERT rows, on {len(ids)} calibration texts"):
        unused = tokenizer.info.unused_ids
        outputs = reference_outputs(checkpoint, ids, unused, lambda rows: progress.bar(rows, "reference"))
        assert outputs.colbert is not None
        np.save(folder / COLBERT_PCA, principal_axes(outputs.colbert))


def thinned(ids: Sequence[Ids], most_rows: int = MOST_ROWS) -> Sequence[Ids]:
    """Every n-th text, so that they have about `most_rows` rows."""
    return ids[:: -(-sum(len(row) - 1 for row in ids) // most_rows) or 1]


def principal_axes(texts: Sequence[Float32Array]) -> Float32Array:
    """Eigenvectors of the rows' second moments; rows are not centred, because MaxSim is of dot products.

    Args:
        texts: (L-1, C) rows of each text.

    Returns:
        (C, C), an axis in each column, the widest first; the largest value of each is positive.
    """
    rows = np.concatenate(texts).astype(np.float64)
    axes = np.linalg.eigh(rows.T @ rows)[1][:, ::-1]
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    return np.ascontiguousarray(axes * signs, dtype=np.float32)
