"""sentence-transformers, dense only, in its own environment: PyTorch, or its own export on ONNX Runtime or OpenVINO.

A checkpoint without sentence-transformers' files would be pooled by the mean, whatever it was trained with. So the
modules are put together here: the encoder, the pooling that the bundle says, and normalisation.
"""

from collections.abc import Sequence
from typing import Any

from m3_bench.workers.serve import Encoder, serve
from m3_bench.workers.vectors import Vectors

_PACKAGES = {"torch": (), "onnx": ("onnxruntime", "optimum-onnx"), "openvino": ("openvino", "optimum-intel")}
_POOLING = {"cls": "cls", "mean": "mean", "last_token": "lasttoken"}


class SentenceEncoder(Encoder):
    """`SentenceTransformer.encode` as its users call it."""

    def __init__(self, checkpoint: str, backend: str, precision: str, pooling: str, threads: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer, models

        self.packages = ("sentence-transformers", "transformers", "torch", *_PACKAGES[backend])
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
        encoder = models.Transformer(checkpoint, model_args=arguments, backend=backend)
        width = encoder.get_word_embedding_dimension()
        pooled = models.Pooling(width, pooling_mode=_POOLING[pooling])
        self._model = SentenceTransformer(modules=[encoder, pooled, models.Normalize()], device="cpu")

    def run(self, texts: Sequence[str], _heads: Sequence[str]) -> Any:
        """See `serve.Encoder.run`."""
        self._model.encode(list(texts), batch_size=len(texts), show_progress_bar=False)
        return texts

    def work(self, result: Any) -> float:
        """See `serve.Encoder.work`."""
        return float(self._model.tokenize(list(result))["attention_mask"].sum())

    def vectors(self, texts: Sequence[str], _heads: Sequence[str]) -> Vectors:
        """See `serve.Encoder.vectors`."""
        return Vectors(self._model.encode(list(texts), batch_size=8, show_progress_bar=False), None, None)


if __name__ == "__main__":
    serve(SentenceEncoder)
