"""The two extra heads: sparse_linear.pt and colbert_linear.pt, read as data and never as code."""

from dataclasses import dataclass
from pathlib import Path

import torch

from m3_export.checkpoint.weights import UNREADABLE, load_pickle, reason_of
from m3_export.errors import CheckpointError

SPARSE_FILE = "sparse_linear.pt"
COLBERT_FILE = "colbert_linear.pt"
REMEDY = (
    "FlagEmbedding's fine-tune writes both heads with --unified_finetuning True; "
    "for a dense-only bundle on purpose: m3-export --heads dense"
)


MISSING = (
    "Merging (LM_Cocktail) and saving with sentence-transformers keep the encoder alone: copy both files from the "
    "checkpoint that was merged or fine-tuned"
)


@dataclass(frozen=True)
class HeadWeights:
    """A linear layer in float32: weight (out, H), bias (out,)."""

    weight: torch.Tensor
    bias: torch.Tensor


def read_heads(folder: Path, hidden_size: int) -> tuple[HeadWeights, HeadWeights]:
    """Sparse and ColBERT head; the ColBERT width C is read from its tensor.

    Raises:
        CheckpointError: a file is missing or refused, or its tensors have a wrong name, shape, dtype or value.
    """
    missing = [name for name in (SPARSE_FILE, COLBERT_FILE) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{' and '.join(missing)} not found in {folder.name}. {MISSING}. {REMEDY}")
    sparse = _read(folder / SPARSE_FILE)
    colbert = _read(folder / COLBERT_FILE)
    _check_shape(SPARSE_FILE, sparse, rows=1, hidden_size=hidden_size)
    _check_shape(COLBERT_FILE, colbert, rows=colbert.bias.shape[0], hidden_size=hidden_size)
    return sparse, colbert


def _read(path: Path) -> HeadWeights:
    try:
        state = load_pickle(path)
    except UNREADABLE as error:
        reason = reason_of(error)
        raise CheckpointError(f"{path.name}: not a plain file of tensors, refused ({reason}). {REMEDY}") from error
    if not isinstance(state, dict) or set(state) != {"weight", "bias"}:
        names = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path.name}: expected exactly 'weight' and 'bias', got {names}. {REMEDY}")
    return HeadWeights(
        checked_tensor(path.name, "weight", state["weight"], 2), checked_tensor(path.name, "bias", state["bias"], 1)
    )


def checked_tensor(where: str, name: str, value: object, rank: int) -> torch.Tensor:
    """A head's tensor in float32.

    Raises:
        CheckpointError: it is none, or its dtype, layout, rank or values are not a head's.
    """
    if not isinstance(value, torch.Tensor) or value.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        kind = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise CheckpointError(f"{where}: {name} is {kind}; expected a float32, float16 or bfloat16 tensor")
    if value.layout is not torch.strided or value.is_meta:
        raise CheckpointError(f"{where}: {name} is a sparse or an empty (meta) tensor; save it as a dense tensor")
    if value.dim() != rank or 0 in value.shape:
        raise CheckpointError(f"{where}: {name} has shape {tuple(value.shape)}; expected {rank} dimensions, none 0")
    if not torch.isfinite(value).all():
        raise CheckpointError(
            f"{where}: {name} holds NaN or infinity; the training run has diverged; use an earlier checkpoint"
        )
    return value.detach().to(torch.float32).contiguous()


def _check_shape(file: str, head: HeadWeights, *, rows: int, hidden_size: int) -> None:
    weight, bias = tuple(head.weight.shape), tuple(head.bias.shape)
    if weight != (rows, hidden_size) or bias != (rows,):
        raise CheckpointError(
            f"{file}: weight has shape {weight} and bias {bias}; "
            f"with hidden_size {hidden_size} expected ({rows}, {hidden_size}) and ({rows},); "
            "head and encoder belong to different models"
        )
