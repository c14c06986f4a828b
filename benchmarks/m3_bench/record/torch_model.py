"""The model in PyTorch on a device, in a dtype: transformers' encoder and the heads as FlagEmbedding applies them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from torch.nn import functional

from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.heads import HeadWeights
from m3_export.verify.parity import Outputs
from m3_export.verify.reference import encoder_of
from m3_runtime.bundle.manifest import Pooling, TokenizerInfo
from m3_runtime.tokenizer import M3Tokenizer


class Dtype(StrEnum):
    """What PyTorch computes in. `TF32` is float32 whose products may drop mantissa bits, on GPUs that can."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def torch(self) -> torch.dtype:
        """The dtype of the weights."""
        return {Dtype.FP16: torch.float16, Dtype.BF16: torch.bfloat16}.get(self, torch.float32)


@dataclass(frozen=True)
class Batch:
    """What the model gave for B texts padded to T tokens, on the host, float32, whatever it was computed in.

    Attributes:
        ids: (B, T) int64.
        lengths: (B,) tokens of each text.
        dense: (B, H), or None.
        weights: (B, T) of the sparse head, or None.
        colbert: (B, T-1, C), or None.
    """

    ids: np.ndarray
    lengths: np.ndarray
    dense: np.ndarray | None
    weights: np.ndarray | None
    colbert: np.ndarray | None


class TorchModel:
    """A checkpoint on a device. `run` is one padded forward pass; numbers are on the host when it returns."""

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: M3Tokenizer, info: TokenizerInfo, device: str, dtype: Dtype
    ) -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype is Dtype.TF32
        self._tokenizer, self._info = tokenizer, info
        self._device, self._dtype = torch.device(device), dtype.torch
        self._encoder = encoder_of(checkpoint).to(self._device, self._dtype)
        self._sparse, self._colbert = (self._moved(head) for head in (checkpoint.sparse, checkpoint.colbert))
        self._pooling = checkpoint.pooling
        self.max_tokens = checkpoint.geometry.max_tokens

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that the checkpoint has."""
        return ("dense", "sparse", "colbert") if self._sparse else ("dense",)

    def run(self, texts: Sequence[str], heads: Sequence[str]) -> Batch:
        """Tokenize, pad to the longest, run, copy back."""
        rows = self._tokenizer.encode_batch(list(texts), self.max_tokens).ids
        lengths = np.array([len(row) for row in rows])
        ids = np.full((len(rows), int(lengths.max())), self._info.pad_id, dtype=np.int64)
        for place, row in zip(ids, rows, strict=True):
            place[: len(row)] = row
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        with torch.inference_mode():
            inputs = torch.from_numpy(ids).to(self._device)
            attention = torch.from_numpy(mask.astype(np.int64)).to(self._device)
            hidden = self._encoder(input_ids=inputs, attention_mask=attention).last_hidden_state
            dense = self._pooled(hidden, attention) if "dense" in heads else None
            weights = torch.relu(_linear(hidden, self._sparse))[..., 0] if "sparse" in heads else None
            colbert = self._unit(_linear(hidden[:, 1:], self._colbert)) if "colbert" in heads else None
            return Batch(
                ids, lengths, *(None if x is None else x.float().cpu().numpy() for x in (dense, weights, colbert))
            )

    def outputs(self, batches: Sequence[Sequence[str]]) -> Outputs:
        """The vectors of all texts, each batch by itself, as parity compares them."""
        dense, lexical, colbert = [], [], []
        for texts in batches:
            found = self.run(texts, self.heads)
            assert found.dense is not None
            dense.append(found.dense)
            for number, length in enumerate(found.lengths):
                if found.weights is not None and found.colbert is not None:
                    lexical.append(self._lexical(found.ids[number, :length], found.weights[number, :length]))
                    colbert.append(found.colbert[number, : length - 1])
        has_all = self._sparse is not None
        return Outputs(np.concatenate(dense), lexical if has_all else None, colbert if has_all else None)

    def _moved(self, head: HeadWeights | None) -> HeadWeights | None:
        if head is None:
            return None
        return HeadWeights(*(tensor.to(self._device, self._dtype) for tensor in (head.weight, head.bias)))

    def _pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        match self._pooling.pooling:
            case Pooling.CLS:
                pooled = hidden[:, 0]
            case Pooling.MEAN:
                pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            case _:
                pooled = hidden[torch.arange(len(hidden)), mask.sum(1) - 1]
        return self._unit(pooled)

    def _unit(self, x: torch.Tensor) -> torch.Tensor:
        return functional.normalize(x.float(), dim=-1) if self._pooling.normalize else x

    def _lexical(self, ids: np.ndarray, weights: np.ndarray) -> dict[int, float]:
        largest: dict[int, float] = {}
        for token, weight in zip(ids.tolist(), weights.tolist(), strict=True):
            if token not in self._info.unused_ids and weight > largest.get(token, 0.0):
                largest[token] = weight
        return largest


def _linear(x: torch.Tensor, head: HeadWeights | None) -> torch.Tensor:
    assert head is not None  # asked only of checkpoints that have it
    return functional.linear(x, head.weight, head.bias)


def _on_host(x: torch.Tensor | None) -> np.ndarray | None:
    return None if x is None else x.float().cpu().numpy()
