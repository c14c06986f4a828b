"""The files of a checkpoint folder in BGE-M3's layout; the same inputs give the same bytes.

```
config.json  model.safetensors  sparse_linear.pt  colbert_linear.pt            (always)
modules.json  sentence_bert_config.json  1_Pooling/config.json  2_Normalize/   (only where pooling is not CLS)
```
The tokenizer's files are written by `m3_models.xlmr_tokenizer`.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from m3_models.optional_packages import import_package

PAD_ID = 1
_ENCODER = "roberta."  # before an encoder's own names where it has a task's head
# XLM-R counts positions from pad id + 1: its table has two rows more than the longest text has tokens.
POSITION_SHIFT = PAD_ID + 1

FloatArray: TypeAlias = NDArray[np.float32]
TensorSource: TypeAlias = Callable[[str, tuple[int, ...]], FloatArray]
"""Gives the tensor of a name from `tensor_shapes`, in the shape asked for."""


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

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """See the function of this name."""
        sizes = {"layers": self.layers, "hidden": self.hidden, "ffn": self.ffn}
        return tensor_shapes(**sizes, vocabulary=self.vocabulary, positions=self.positions)


@dataclass(frozen=True)
class Linear:
    """One head: `weight` (out, H) and `bias` (out,), float32."""

    weight: FloatArray
    bias: FloatArray


@dataclass(frozen=True)
class Heads:
    """The two heads that BGE-M3 adds to its encoder: sparse (1, H) and ColBERT (C, H)."""

    sparse: Linear
    colbert: Linear


@dataclass(frozen=True)
class Classifier:
    """The head of a reranker, read from the first token: out_proj (1, H) of tanh of dense (H, H)."""

    dense: Linear
    out_proj: Linear

    def tensors(self) -> dict[str, FloatArray]:
        """By the names that transformers' XLMRobertaForSequenceClassification gives them."""
        parts = {"dense": self.dense, "out_proj": self.out_proj}
        return {
            f"classifier.{name}.{kind}": tensor
            for name, part in parts.items()
            for kind, tensor in (("bias", part.bias), ("weight", part.weight))
        }


def tensor_shapes(*, layers: int, hidden: int, ffn: int, vocabulary: int, positions: int) -> dict[str, tuple[int, ...]]:
    """Return name → shape of every `XLMRobertaModel` tensor, sorted by name; no pooler, nothing uses it.

    >>> shapes = tensor_shapes(layers=1, hidden=8, ffn=16, vocabulary=10, positions=6)
    >>> shapes["encoder.layer.0.intermediate.dense.weight"]
    (16, 8)
    """
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (vocabulary, hidden),
        "embeddings.position_embeddings.weight": (positions, hidden),
        "embeddings.token_type_embeddings.weight": (1, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
    }
    layer: dict[str, tuple[int, ...]] = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "attention.output.LayerNorm": (hidden,),
        "intermediate.dense": (ffn, hidden),
        "output.dense": (hidden, ffn),
        "output.LayerNorm": (hidden,),
    }
    for index in range(layers):
        shapes |= {f"encoder.layer.{index}.{name}.weight": shape for name, shape in layer.items()}
    for name, shape in list(shapes.items()):
        if not name.endswith("embeddings.weight"):
            shapes[name.removesuffix("weight") + "bias"] = shape[:1]
    return dict(sorted(shapes.items()))


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


def write_json(path: Path, content: object) -> None:
    """Write JSON with sorted keys, so that equal content gives equal bytes."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_encoder(folder: Path, geometry: Geometry, source: TensorSource) -> None:
    """Write config.json and model.safetensors, asking the source for one tensor at a time."""
    write_json(folder / "config.json", config_json(geometry))
    write_safetensors(folder / "model.safetensors", geometry.tensor_shapes(), source)


def write_reranker(folder: Path, geometry: Geometry, source: TensorSource, classifier: Classifier) -> None:
    """Write config.json and model.safetensors as XLMRobertaForSequenceClassification with one label saves them."""
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    architecture = {"architectures": ["XLMRobertaForSequenceClassification"]}
    write_json(folder / "config.json", config_json(geometry) | architecture | labels)
    head = classifier.tensors()
    shapes = {name: tensor.shape for name, tensor in head.items()}
    shapes |= {f"{_ENCODER}{name}": shape for name, shape in geometry.tensor_shapes().items()}

    def tensor(name: str, shape: tuple[int, ...]) -> FloatArray:
        return head[name] if name in head else source(name.removeprefix(_ENCODER), shape)

    write_safetensors(folder / "model.safetensors", shapes, tensor)


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]], source: TensorSource) -> None:
    """Stream float32 tensors into one safetensors file; memory holds one tensor, never the model.

    The library's own writer wants all tensors at once, which for BGE-M3's geometry is 2.3 GB.

    Args:
        path: The file.
        shapes: Name → shape, in file order.
        source: Called once per name, in that order.

    Raises:
        ValueError: The source gave another shape.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = source(name, shape)
            if tensor.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {tensor.shape}")
            file.write(np.ascontiguousarray(tensor, "<f4").data)


def write_heads(folder: Path, heads: Heads) -> None:
    """Write sparse_linear.pt and colbert_linear.pt: state dicts of weight and bias, FlagEmbedding's layout.

    Raises:
        MissingPackageError: torch is not installed.
    """
    torch = import_package("torch")
    for name, head in (("sparse_linear.pt", heads.sparse), ("colbert_linear.pt", heads.colbert)):
        state = OrderedDict(weight=torch.from_numpy(head.weight.copy()), bias=torch.from_numpy(head.bias.copy()))
        torch.save(state, folder / name)


def write_mean_pooling(folder: Path, geometry: Geometry) -> None:
    """Write the sentence-transformers files that say: mean pooling, unit length.

    A folder without them means CLS pooling, BGE-M3's own; tools that read them need no flag.
    """
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    pooling = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in modes}
    settings = {"max_seq_length": geometry.max_tokens, "do_lower_case": False}
    write_sentence_transformers(folder, geometry.hidden, pooling, settings, normalize=True)
    (folder / "2_Normalize").mkdir()


def write_sentence_transformers(
    folder: Path, hidden: int, pooling: Mapping[str, bool], settings: Mapping[str, object], *, normalize: bool
) -> None:
    """Write modules.json, sentence_bert_config.json with these settings, and 1_Pooling/config.json with these flags."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", settings)
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden, **pooling})
