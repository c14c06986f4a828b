"""Checkpoints that can be exported by name, without a hub: `mini-m3`, `tiny-random`, `synthetic-xlmr-large`; rerankers.

>>> from m3_models import names
>>> names()[0]
'mini-m3'
"""

from m3_models.catalogue import describe, is_name, is_reranker, names, write_checkpoint
from m3_models.errors import (
    FolderNotEmptyError,
    MissingPackageError,
    ModelError,
    UnknownModelError,
    WeightsFileError,
)

__all__ = [
    "FolderNotEmptyError",
    "MissingPackageError",
    "ModelError",
    "UnknownModelError",
    "WeightsFileError",
    "describe",
    "is_name",
    "is_reranker",
    "names",
    "write_checkpoint",
]
