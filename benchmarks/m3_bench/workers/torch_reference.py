"""PyTorch, the reference: transformers' encoder and the heads as FlagEmbedding applies them, on a CPU or a GPU."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from m3_bench.workers.serve import Encoder, serve
from m3_bench.workers.vectors import Vectors
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.heads import HeadWeights
from m3_export.checkpoint.tokenizer import CheckpointTokenizer
from m3_export.recipe import Recipe
from m3_export.verify.reference import encoder_of
from m3_runtime.bundle.manifest import Pooling
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
class Padded:
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


def recipe_of(pooling: str | None) -> Recipe:
    """How a checkpoint is read; None takes the pooling that it names itself."""
    return Recipe(pooling=None if pooling is None else Pooling(pooling))


class TorchEncoder(Encoder):
    """A checkpoint on a device. `run` is one padded forward pass; numbers are on the host when it returns."""

    packages = ("torch", "transformers", "tokenizers")

    def __init__(self, checkpoint: str, device: str, dtype: str, pooling: str | None, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == Dtype.TF32
        self._device, self._dtype = torch.device(device), Dtype(dtype).torch
        opened = Checkpoint.open(Path(checkpoint), recipe_of(pooling))
        source = CheckpointTokenizer.open(Path(checkpoint), opened.geometry.vocab_size)
        with tempfile.TemporaryDirectory() as folder:
            source.save(Path(folder))
            self._tokenizer, self._info = M3Tokenizer.open(Path(folder) / source.info.path, source.info), source.info
        self._encoder = encoder_of(opened).to(self._device, self._dtype)
        self._sparse, self._colbert = (self._moved(head) for head in (opened.sparse, opened.colbert))
        self._pooling, self._max_tokens = opened.pooling, opened.geometry.max_tokens

    def run(self, texts: Sequence[str], heads: Sequence[str]) -> Padded:
        """Tokenize, pad to the longest, run, copy back."""
        rows = self._tokenizer.encode_batch(list(texts), self._max_tokens).ids
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
            found = (None if x is None else x.float().cpu().numpy() for x in (dense, weights, colbert))
            return Padded(ids, lengths, *found)

    def work(self, result: Padded) -> float:
        """See `serve.Encoder.work`."""
        return float(result.lengths.sum())

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Vectors:
        """See `serve.Encoder.vectors`: every text alone, so that padding can hide nothing."""
        dense, lexical, colbert = [], [], []
        for text in texts:
            found = self.run([text], heads)
            dense.append(found.dense)
            if found.weights is not None and found.colbert is not None:
                lexical.append(self._lexical(found.ids[0], found.weights[0]))
                colbert.append(found.colbert[0])
        has_all = self._sparse is not None
        return Vectors(np.concatenate(dense), lexical if has_all else None, colbert if has_all else None)

    def memory(self) -> tuple[int, int]:
        """See `serve.Encoder.memory`; of a GPU its own, since the process began."""
        if self._device.type == "cpu":
            return super().memory()
        return torch.cuda.memory_allocated(self._device), torch.cuda.max_memory_allocated(self._device)

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


if __name__ == "__main__":
    serve(TorchEncoder)
