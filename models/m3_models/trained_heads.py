"""The two heads of mini-m3, shipped as data; `models/train_mini_m3_heads.py` makes them again."""

from importlib import resources

from m3_models.checkpoint_files import Heads, Linear
from m3_models.optional_packages import import_package

FILE_NAME = "mini_m3_heads.safetensors"


def trained_heads() -> Heads:
    """Read the shipped heads: sparse (1, 384), ColBERT (128, 384).

    Raises:
        MissingPackageError: safetensors is not installed.
    """
    safetensors = import_package("safetensors.numpy")
    tensors = safetensors.load(resources.files("m3_models").joinpath("data", FILE_NAME).read_bytes())
    return Heads(
        sparse=Linear(tensors["sparse.weight"], tensors["sparse.bias"]),
        colbert=Linear(tensors["colbert.weight"], tensors["colbert.bias"]),
    )
