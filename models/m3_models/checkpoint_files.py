"""Writes the files of a checkpoint folder in BGE-M3's layout; the same inputs give the same bytes.

```
config.json  model.safetensors  sparse_linear.pt  colbert_linear.pt            (always)
modules.json  sentence_bert_config.json  1_Pooling/config.json  2_Normalize/   (only where pooling is not CLS)
```
The tokenizer's files are written by `m3_models.xlmr_tokenizer`.
"""

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m3_models.arrays import FloatArray
from m3_models.optional_packages import import_package
from m3_models.xlmr_layout import Geometry, TensorSource, config_json, tensor_shapes


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


def write_json(path: Path, content: object) -> None:
    """Write JSON with sorted keys, so that equal content gives equal bytes."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_encoder(folder: Path, geometry: Geometry, source: TensorSource) -> None:
    """Write config.json and model.safetensors, asking the source for one tensor at a time."""
    write_json(folder / "config.json", config_json(geometry))
    write_safetensors(folder / "model.safetensors", tensor_shapes(geometry), source)


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
    kinds = ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": geometry.max_tokens, "do_lower_case": False})
    (folder / "2_Normalize").mkdir()
    (folder / "1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": geometry.hidden,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    write_json(folder / "1_Pooling" / "config.json", pooling)
