"""Names, shapes and config.json of an `XLMRobertaModel` checkpoint, the encoder of BGE-M3."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from m3_models.arrays import FloatArray

PAD_ID = 1
POSITION_SHIFT = PAD_ID + 1
"""XLM-R counts positions from pad id + 1: its table has two rows more than the longest text has tokens."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of one encoder: H hidden, V vocabulary; `positions` counts table rows (longest text + 2)."""

    hidden: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int
    positions: int
    epsilon: float

    @property
    def max_tokens(self) -> int:
        """Longest text, special tokens included."""
        return self.positions - POSITION_SHIFT


TensorSource: TypeAlias = Callable[[str, tuple[int, ...]], FloatArray]
"""Gives the tensor of a name from `tensor_shapes`, in the shape asked for."""


def tensor_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Return name → shape of every encoder tensor, sorted by name; no pooler, nothing uses it.

    >>> tensor_shapes(Geometry(8, 1, 2, 16, 10, 6, 1e-5))["encoder.layer.0.intermediate.dense.weight"]
    (16, 8)
    """
    hidden = geometry.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (geometry.vocabulary, hidden),
        "embeddings.position_embeddings.weight": (geometry.positions, hidden),
        "embeddings.token_type_embeddings.weight": (1, hidden),
        **_norm("embeddings.LayerNorm", hidden),
    }
    for index in range(geometry.layers):
        layer = f"encoder.layer.{index}"
        for projection in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
        ):
            shapes |= _linear(f"{layer}.{projection}", hidden, hidden)
        shapes |= _norm(f"{layer}.attention.output.LayerNorm", hidden)
        shapes |= _linear(f"{layer}.intermediate.dense", geometry.ffn, hidden)
        shapes |= _linear(f"{layer}.output.dense", hidden, geometry.ffn)
        shapes |= _norm(f"{layer}.output.LayerNorm", hidden)
    return dict(sorted(shapes.items()))


def parameter_count(geometry: Geometry) -> int:
    """Number of encoder parameters.

    >>> round(parameter_count(Geometry(1024, 24, 16, 4096, 250002, 8194, 1e-5)) / 1e6)
    567
    """
    return sum(math.prod(shape) for shape in tensor_shapes(geometry).values())


def config_json(geometry: Geometry) -> dict[str, object]:
    """Return the content of config.json, the keys that BGE-M3's has."""
    return {
        "architectures": ["XLMRobertaModel"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "classifier_dropout": None,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": geometry.hidden,
        "initializer_range": 0.02,
        "intermediate_size": geometry.ffn,
        "layer_norm_eps": geometry.epsilon,
        "max_position_embeddings": geometry.positions,
        "model_type": "xlm-roberta",
        "num_attention_heads": geometry.heads,
        "num_hidden_layers": geometry.layers,
        "output_past": True,
        "pad_token_id": PAD_ID,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        # The release whose layout this is, as in BGE-M3; transformers 4.57 warns about a wrong tokenizer
        # where it is absent.
        "transformers_version": "4.33.0",
        "type_vocab_size": 1,
        "use_cache": True,
        "vocab_size": geometry.vocabulary,
    }


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
