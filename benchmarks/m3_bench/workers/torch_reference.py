"""PyTorch, the reference: transformers' encoder and the heads as FlagEmbedding applies them, on a CPU or a GPU."""

import tempfile
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from m3_bench.workers.serve import Encoder, serve
from m3_bench.workers.vectors import Vectors, largest_by_id
from m3_export.checkpoint.folder import Checkpoint
from m3_export.checkpoint.heads import HeadWeights
from m3_export.checkpoint.tokenizer import CheckpointTokenizer
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


def tokenizer_of(checkpoint: Path, opened: Checkpoint) -> tuple[M3Tokenizer, CheckpointTokenizer]:
    """The runtime's tokenizer of an open checkpoint, and the checkpoint's own."""
    source = CheckpointTokenizer.open(checkpoint, opened.geometry.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        source.save(Path(folder))
        return M3Tokenizer.open(Path(folder) / source.info.path, source.info), source


class TorchEncoder(Encoder):
    """A checkpoint on a device. `run` is one padded forward pass; numbers are on the host when it returns."""

    packages = ("torch", "transformers", "tokenizers")

    def __init__(self, checkpoint: str, device: str, dtype: str, pooling: str | None, threads: int) -> None:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == Dtype.TF32
        self._device, self._dtype = torch.device(device), Dtype(dtype).torch
        opened = Checkpoint.open(Path(checkpoint), pooling=Pooling(pooling) if pooling else None)
        self._tokenizer, source = tokenizer_of(Path(checkpoint), opened)
        self._info = source.info
        self._encoder = encoder_of(opened).to(self._device, self._dtype)
        self._sparse, self._colbert = (self._moved(head) for head in (opened.sparse, opened.colbert))
        self._pooling, self._max_tokens = opened.pooling, opened.geometry.max_tokens

    def run(self, texts: Sequence[str], heads: Sequence[str]) -> tuple[Sequence[np.ndarray], Mapping[str, np.ndarray]]:
        """Tokenize, pad to the longest, run, copy back.

        Returns:
            Ids of B texts, and by head, float32 on the host: dense (B, H), sparse (B, T), colbert (B, T-1, C).
        """
        ids = self._tokenizer.encode_batch(list(texts), self._max_tokens).ids
        rows = [torch.from_numpy(row.astype(np.int64)) for row in ids]
        inputs = pad_sequence(rows, batch_first=True, padding_value=self._info.pad_id)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        with torch.inference_mode():
            inputs, mask = inputs.to(self._device), mask.to(self._device)
            hidden = self._encoder(input_ids=inputs, attention_mask=mask).last_hidden_state
            heads_of = {
                "dense": lambda: self._pooled(hidden, mask),
                "sparse": lambda: torch.relu(_linear(hidden, self._sparse))[..., 0],
                "colbert": lambda: self._unit(_linear(hidden[:, 1:], self._colbert)),
            }
            return ids, {head: heads_of[head]().float().cpu().numpy() for head in heads}

    def work(self, result: tuple[Sequence[np.ndarray], Mapping[str, np.ndarray]]) -> float:
        return float(sum(map(len, result[0])))

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Vectors:
        """Every text alone, so that padding can hide nothing."""
        found = [self.run([text], heads) for text in texts]
        dense = np.concatenate([by_head["dense"] for _, by_head in found])
        if self._sparse is None:
            return Vectors(dense, None, None)
        unused = self._info.unused_ids
        lexical = [largest_by_id(ids[0].tolist(), one["sparse"][0].tolist(), unused) for ids, one in found]
        return Vectors(dense, lexical, [one["colbert"][0] for _, one in found])

    def memory(self) -> tuple[int, int]:
        """Of a GPU its own, since the process began."""
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


def _linear(x: torch.Tensor, head: HeadWeights | None) -> torch.Tensor:
    assert head is not None  # asked only of checkpoints that have it
    return functional.linear(x, head.weight, head.bias)


if __name__ == "__main__":
    serve(TorchEncoder)
