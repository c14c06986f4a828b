"""FlagEmbedding on PyTorch, in its own environment.

`BGEM3FlagModel.encode` runs its first batch twice, once only to find a batch size that fits. That would double the
time of a call with one batch, so the steps of `encode` are called here without that pass: tokenize, pad, model, numpy.
What it does with the numbers afterwards (dicts of weights) is left out too. Both favour FlagEmbedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from m3_bench.workers.serve import Encoder, serve
from m3_bench.workers.vectors import Vectors


@dataclass(frozen=True)
class Outputs:
    """What the model returned, as arrays, and how many tokens went in."""

    vectors: dict[str, Any]
    tokens: int


class FlagEncoder(Encoder):
    """The model behind `BGEM3FlagModel`, FP32 or BF16, on CPU."""

    packages = ("FlagEmbedding", "torch", "transformers")

    def __init__(self, checkpoint: str, precision: str, pooling: str, colbert_dim: int, threads: int) -> None:
        """Load the model; `colbert_dim` -1 is the hidden size."""
        import torch
        from FlagEmbedding import BGEM3FlagModel

        torch.set_num_threads(threads)
        self._no_grad = torch.no_grad
        self._flag = BGEM3FlagModel(
            checkpoint, use_fp16=False, devices="cpu", pooling_method=pooling, colbert_dim=colbert_dim
        )
        # on CPU its own switch rounds the weights and computes in FP32, so BF16 is set here
        self._flag.model.to(torch.bfloat16 if precision == "bf16" else torch.float32).eval()

    def run(self, texts: Sequence[str], heads: Sequence[str]) -> Outputs:
        """See `serve.Encoder.run`."""
        with self._no_grad():
            batch = self._flag.tokenizer(
                list(texts), padding=True, truncation=True, max_length=8192, return_tensors="pt"
            )
            found = self._flag.model(
                batch,
                return_dense="dense" in heads,
                return_sparse="sparse" in heads,
                return_colbert_vecs="colbert" in heads,
            )
            arrays = {name: values.float().numpy() for name, values in found.items()}
            return Outputs(arrays, int(batch["attention_mask"].sum()))

    def work(self, result: Outputs) -> float:
        """See `serve.Encoder.work`."""
        return float(result.tokens)

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Vectors:
        """See `serve.Encoder.vectors`: every text alone. `encode` cannot be asked, it would go back to FP32."""
        found = [self.run([text], heads).vectors for text in texts]
        ids = [self._flag.tokenizer(text, truncation=True, max_length=8192)["input_ids"] for text in texts]
        weights = [one["sparse_vecs"].reshape(-1).tolist() for one in found]
        lexical = [self._lexical(row, values) for row, values in zip(ids, weights, strict=True)]
        return Vectors([one["dense_vecs"][0] for one in found], lexical, [one["colbert_vecs"][0] for one in found])

    def _lexical(self, ids: Sequence[int], weights: Sequence[float]) -> dict[int, float]:
        tokenizer = self._flag.tokenizer
        unused = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
        largest: dict[int, float] = {}
        for token, weight in zip(ids, weights, strict=True):
            if token not in unused and weight > largest.get(token, 0.0):
                largest[token] = weight
        return largest


if __name__ == "__main__":
    serve(FlagEncoder)
