"""BGE-M3's dense, sparse and ColBERT vectors on CPU, from a verified bundle, without PyTorch.

from m3_runtime import M3Encoder

with M3Encoder.open("my-bundle") as encoder:
    result = encoder.encode(["one text", "another"], return_sparse=True, return_colbert_vecs=True)
    result["dense_vecs"], result["lexical_weights"], result["colbert_vecs"]
"""

# ruff: noqa: E402 - a processor that NumPy crashes on is refused before NumPy is imported

from m3_runtime.cpu import check_processor, cpu_info

check_processor(cpu_info())

from m3_runtime.bundle.reader import Bundle, Verify
from m3_runtime.bundle.space import VariantDriftWarning, VocabularyDriftWarning, check_space
from m3_runtime.encode.colbert import PackedRows
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.sparse import SparseVectors
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import (
    BundleDamagedError,
    BundleError,
    BundleFormatError,
    BundleNotFoundError,
    EngineError,
    EngineNotInstalledError,
    HeadError,
    InputError,
    M3Error,
    NoRoomError,
    PartlyAddedError,
    SpaceMismatchError,
    TextTooLongError,
    VariantError,
)
from m3_runtime.reranker import M3Reranker, RerankScores
from m3_runtime.scoring import PairScores
from m3_runtime.version import __version__

__all__ = [
    "Bundle",
    "BundleDamagedError",
    "BundleError",
    "BundleFormatError",
    "BundleNotFoundError",
    "Encoding",
    "EngineError",
    "EngineNotInstalledError",
    "HeadError",
    "InputError",
    "M3Encoder",
    "M3Error",
    "M3Reranker",
    "NoRoomError",
    "PackedRows",
    "PairScores",
    "PartlyAddedError",
    "RerankScores",
    "SpaceMismatchError",
    "SparseVectors",
    "TextTooLongError",
    "VariantDriftWarning",
    "VariantError",
    "Verify",
    "VocabularyDriftWarning",
    "__version__",
    "check_space",
]
