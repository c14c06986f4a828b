"""A reranker's head: what XLMRobertaForSequenceClassification puts on the first token, with one label.

    score = out_proj(tanh(dense(first row)))        before the sigmoid

BAAI's bge-reranker-base, -large and -v2-m3 have it, and what FlagEmbedding or sentence-transformers fine-tune of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m3_export.checkpoint.heads import COLBERT_FILE, SPARSE_FILE, HeadWeights, checked_tensor
from m3_export.errors import CheckpointError

ARCHITECTURE = "XLMRobertaForSequenceClassification"
_PARTS = ("dense", "out_proj")
_NAMES = tuple(f"classifier.{part}.{kind}" for part in _PARTS for kind in ("weight", "bias"))
_ENCODER_ALONE = "AutoModel.from_pretrained(FOLDER).save_pretrained(OUT) saves the encoder alone"


@dataclass(frozen=True)
class ClassifierWeights:
    """`dense` has weight (H, H), `out_proj` (1, H)."""

    dense: HeadWeights
    out_proj: HeadWeights

    def tensors(self) -> dict[str, torch.Tensor]:
        """By transformers' names."""
        parts = dict(zip(_PARTS, (self.dense, self.out_proj), strict=True))
        return {
            f"classifier.{name}.{kind}": tensor
            for name, part in parts.items()
            for kind, tensor in (("weight", part.weight), ("bias", part.bias))
        }


def read_classifier(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]
) -> ClassifierWeights | None:
    """The classifier of a reranker; None for an encoder.

    Raises:
        CheckpointError: config.json and the weights do not agree on what the model is, it has an encoder's heads too,
            other than one label, or tensors of a wrong shape, dtype or value.
    """
    if not _is_reranker(config, weights):
        return None
    if extra := [name for name in (SPARSE_FILE, COLBERT_FILE) if (folder / name).is_file()]:
        raise CheckpointError(
            f"{folder.name} has heads of both kinds: a reranker's classifier, and {' and '.join(extra)} of an encoder. "
            f"For a reranker move {' and '.join(extra)} elsewhere; for an encoder, {_ENCODER_ALONE}: copy both files "
            "there"
        )
    if lacking := [name for name in _NAMES if name not in weights]:
        raise CheckpointError(
            f"config.json says {ARCHITECTURE}, but the weights lack {lacking[0]!r}; copy the whole checkpoint again"
        )
    _check_labels(config, weights["classifier.out_proj.weight"])
    dense, out_proj = (
        HeadWeights(
            checked_tensor("classifier", f"{part}.weight", weights[f"classifier.{part}.weight"], 2),
            checked_tensor("classifier", f"{part}.bias", weights[f"classifier.{part}.bias"], 1),
        )
        for part in _PARTS
    )
    hidden = int(config["hidden_size"])
    for name, part, rows in (("dense", dense, hidden), ("out_proj", out_proj, 1)):
        if tuple(part.weight.shape) != (rows, hidden) or tuple(part.bias.shape) != (rows,):
            raise CheckpointError(
                f"classifier.{name}: weight has shape {tuple(part.weight.shape)} and bias {tuple(part.bias.shape)}; "
                f"with hidden_size {hidden} expected ({rows}, {hidden}) and ({rows},); "
                "config.json and the weights belong to different models"
            )
    return ClassifierWeights(dense, out_proj)


def _is_reranker(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> bool:
    """What config.json says, and what the weights show, where it says nothing."""
    said = config.get("architectures") or []
    found = [name for name in _NAMES if name in weights]
    if found and said and ARCHITECTURE not in said:
        raise CheckpointError(
            f"config.json says {said[0]}, but the weights hold {found[0]!r}, which a reranker has. For a reranker set "
            f'architectures to ["{ARCHITECTURE}"]; for an encoder, {_ENCODER_ALONE}'
        )
    return bool(found) or ARCHITECTURE in said


def _check_labels(config: Mapping[str, Any], out_proj: torch.Tensor) -> None:
    rows = len(out_proj) if out_proj.dim() else 0
    if rows != 1:
        raise CheckpointError(
            f"the classifier has {rows} labels; a reranker has one, the score of a pair: train it with num_labels=1, "
            "as FlagEmbedding's reranker and sentence-transformers' CrossEncoder do"
        )
    labels, number = config.get("id2label"), config.get("num_labels")
    is_one = labels is None or (isinstance(labels, dict) and len(labels) == 1)
    if not is_one or number not in (None, 1):
        said = f"num_labels is {number!r}" if is_one else f"id2label is {labels!r}"
        raise CheckpointError(
            f"config.json: {said}, but the classifier has one label; config.json and the weights belong to different "
            "models"
        )
