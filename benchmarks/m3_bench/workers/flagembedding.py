"""FlagEmbedding on PyTorch FP32, in its own environment.

`BGEM3FlagModel.encode` runs its first batch twice, once only to find a batch size that fits. That would double the
time of a call with one batch, so the steps of `encode` are called here without that pass: tokenize, pad, model, numpy.
What it does with the numbers afterwards (dicts of weights) is left out too. Both favour FlagEmbedding.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3_bench.workers.serve import serve


@dataclass(frozen=True)
class Outputs:
    """What the model returned, as arrays, and how many tokens went in."""

    vectors: dict[str, Any]
    tokens: int


class FlagEncoder:
    """The model behind `BGEM3FlagModel`, FP32, on CPU."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        import torch
        from FlagEmbedding import BGEM3FlagModel

        torch.set_num_threads(threads)
        self._no_grad = torch.no_grad
        self._flag = BGEM3FlagModel(str(checkpoint), use_fp16=False, devices="cpu")
        self._flag.model.float().eval()

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
            return Outputs({name: values.numpy() for name, values in found.items()}, int(batch["attention_mask"].sum()))

    def inspect(self, result: Outputs) -> tuple[float, Sequence[float]]:
        """See `serve.Encoder.inspect`."""
        return float(result.tokens), result.vectors["dense_vecs"][0].tolist()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    serve(lambda: FlagEncoder(args.checkpoint, args.threads), ("FlagEmbedding", "torch", "transformers"))


if __name__ == "__main__":
    main()
