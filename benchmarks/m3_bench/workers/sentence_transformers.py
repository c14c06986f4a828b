"""sentence-transformers, dense only, in its own environment: PyTorch, or its own export on ONNX Runtime or OpenVINO.

A checkpoint without sentence-transformers' files would be pooled by the mean, whatever it was trained with. So the
modules are put together here: the encoder, the pooling that the bundle says, and normalisation.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3_bench.workers.serve import Encoder, serve
from m3_bench.workers.vectors import Vectors

_POOLING = {"cls": "cls", "mean": "mean", "last_token": "lasttoken"}


class SentenceEncoder(Encoder):
    """`SentenceTransformer.encode` as its users call it."""

    def __init__(self, checkpoint: Path, backend: str, precision: str, pooling: str, threads: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer, models

        torch.set_num_threads(threads)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        arguments: dict[str, Any] = {"torch_dtype": dtype} if backend == "torch" else {"export": True}
        if backend == "onnx":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            arguments |= {"provider": "CPUExecutionProvider", "session_options": options}
        if backend == "openvino":
            arguments |= {"ov_config": {"INFERENCE_NUM_THREADS": str(threads)}}
        encoder = models.Transformer(str(checkpoint), model_args=arguments, backend=backend)
        width = encoder.get_word_embedding_dimension()
        pooled = models.Pooling(width, pooling_mode=_POOLING[pooling])
        self._model = SentenceTransformer(modules=[encoder, pooled, models.Normalize()], device="cpu")

    def run(self, texts: Sequence[str], _heads: Sequence[str]) -> Any:
        """See `serve.Encoder.run`."""
        return self._model.encode(list(texts), batch_size=len(texts), show_progress_bar=False), texts

    def inspect(self, result: Any) -> tuple[float, Sequence[float]]:
        """See `serve.Encoder.inspect`."""
        vectors, texts = result
        return float(self._model.tokenize(list(texts))["attention_mask"].sum()), vectors[0].tolist()

    def vectors(self, texts: Sequence[str], _heads: Sequence[str]) -> Vectors:
        """See `serve.Encoder.vectors`."""
        return Vectors(self._model.encode(list(texts), batch_size=8, show_progress_bar=False), None, None)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--backend", choices=("torch", "onnx", "openvino"), default="torch")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--pooling", choices=tuple(_POOLING), default="cls")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()

    def open_encoder() -> SentenceEncoder:
        return SentenceEncoder(args.checkpoint, args.backend, args.precision, args.pooling, args.threads)

    packages = {"torch": (), "onnx": ("onnxruntime", "optimum-onnx"), "openvino": ("openvino", "optimum-intel")}
    serve(open_encoder, ("sentence-transformers", "transformers", "torch", *packages[args.backend]))


if __name__ == "__main__":
    main()
