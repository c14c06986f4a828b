"""The peers' encoders: each runs in its own environment, on weights of our choice, as its users call it."""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from m3_bench.workers.pairs import pairs_of
from m3_bench.workers.serve import Encoder, serve
from m3_bench.workers.vectors import Vectors, by_id, largest_by_id

_LONGEST = 8192
_BACKENDS = {"torch": (), "onnx": ("onnxruntime", "optimum-onnx"), "openvino": ("openvino", "optimum-intel")}
_LLAMA_POOLING = {"mean": 1, "cls": 2, "last_token": 3}  # llama.h, LLAMA_POOLING_TYPE_*


def _wanted(heads: Sequence[str]) -> dict[str, bool]:
    """The keywords by which FlagEmbedding, and bge-m3-lite after it, are asked for heads."""
    names = {"dense": "return_dense", "sparse": "return_sparse", "colbert": "return_colbert_vecs"}
    return {keyword: head in heads for head, keyword in names.items()}


class LiteEncoder(Encoder):
    """bge-m3-lite, `BGEM3Embedder.encode`.

    It knows one model, pinned by SHA-256, and downloads it. So its file resolver, and only that, is replaced: every
    file comes from the folder that `lite_build` filled. Everything that runs is the package's own.
    """

    packages = ("bge-m3-lite", "onnxruntime", "numpy")

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        from bge_m3_lite import BGEM3Embedder, hub

        hub.ensure_files = lambda files, *_, **__: {file.name: Path(folder) / file.name for file in files}
        self._embedder = BGEM3Embedder(precision=precision, num_threads=threads, quiet=True)

    def run(self, texts: Sequence[str], heads: Sequence[str]) -> Any:
        """Its batches hold 12 texts by default: ours shall not win by that."""
        return self._embedder.encode(texts, batch_size=len(texts), **_wanted(heads))

    def work(self, result: Any) -> float:
        """It has a ColBERT row for every token but the first."""
        return float(sum(len(rows) + 1 for rows in result["colbert_vecs"]))

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Vectors:
        found = self.run(texts, heads)
        return Vectors(found["dense_vecs"], [by_id(row) for row in found["lexical_weights"]], found["colbert_vecs"])


class FlagEncoder(Encoder):
    """FlagEmbedding: the model behind `BGEM3FlagModel`, FP32 or BF16, on CPU.

    `BGEM3FlagModel.encode` runs its first batch twice, once only to find a batch size that fits. That would double the
    time of a call with one batch, so the steps of `encode` are called here without that pass: tokenize, pad, model,
    numpy. What it does with the numbers afterwards (dicts of weights) is left out too. Both favour FlagEmbedding.
    """

    packages = ("FlagEmbedding", "torch", "transformers")

    def __init__(self, checkpoint: str, precision: str, pooling: str, colbert_dim: int, threads: int) -> None:
        """Load the model; `colbert_dim` -1 is the hidden size."""
        from FlagEmbedding import BGEM3FlagModel

        # isort: split
        import torch

        torch.set_num_threads(threads)
        self._no_grad = torch.no_grad
        self._flag = BGEM3FlagModel(
            checkpoint, use_fp16=False, devices="cpu", pooling_method=pooling, colbert_dim=colbert_dim
        )
        # on CPU its own switch rounds the weights and computes in FP32, so BF16 is set here
        self._flag.model.to(torch.bfloat16 if precision == "bf16" else torch.float32).eval()

    def run(self, texts: Sequence[str], heads: Sequence[str]) -> tuple[dict[str, Any], Any]:
        """Arrays by head, and what the tokenizer gave."""
        with self._no_grad():
            batch = self._flag.tokenizer(
                list(texts), padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt"
            )
            found = self._flag.model(batch, **_wanted(heads))
            return {name: values.float().numpy() for name, values in found.items()}, batch

    def work(self, result: tuple[dict[str, Any], Any]) -> float:
        return float(result[1]["attention_mask"].sum())

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Vectors:
        """Every text alone. `encode` cannot be asked, it would go back to FP32."""
        tokenizer = self._flag.tokenizer
        unused = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
        found = [self.run([text], heads) for text in texts]
        lexical = [
            largest_by_id(batch["input_ids"][0].tolist(), one["sparse_vecs"].reshape(-1).tolist(), unused)
            for one, batch in found
        ]
        return Vectors(
            [one["dense_vecs"][0] for one, _ in found], lexical, [one["colbert_vecs"][0] for one, _ in found]
        )


class FlagScorer(Encoder):
    """FlagEmbedding's `FlagReranker`: its tokenizer and model, as `compute_score` calls them in FP32.

    `compute_score` itself runs its first batch twice, to see whether it fits into memory: ours shall not win by that.
    """

    packages = ("FlagEmbedding", "torch", "transformers")

    def __init__(self, checkpoint: str, threads: int) -> None:
        from FlagEmbedding import FlagReranker

        # isort: split
        import torch

        torch.set_num_threads(threads)
        self._no_grad = torch.no_grad
        self._flag = FlagReranker(checkpoint, use_fp16=False, devices="cpu")
        self._flag.model.eval()

    def run(self, texts: Sequence[str], _heads: Sequence[str]) -> tuple[Any, Any]:
        """(B,) scores before the sigmoid, and what the tokenizer gave."""
        queries, passages = zip(*pairs_of(texts), strict=True)
        with self._no_grad():
            batch = self._flag.tokenizer(
                list(queries),
                list(passages),
                padding=True,
                truncation="only_second",
                max_length=_LONGEST,
                return_tensors="pt",
            )
            return self._flag.model(**batch, return_dict=True).logits.view(-1).float().numpy(), batch

    def work(self, result: tuple[Any, Any]) -> float:
        return float(result[1]["attention_mask"].sum())


class SentenceEncoder(Encoder):
    """sentence-transformers, dense only: PyTorch, or its own export on ONNX Runtime or OpenVINO.

    A checkpoint without sentence-transformers' files would be pooled by the mean, whatever it was trained with. So the
    modules are put together here: the encoder, the pooling that the bundle says, and normalisation.
    """

    def __init__(self, checkpoint: str, backend: str, precision: str, pooling: str, threads: int) -> None:
        from sentence_transformers import SentenceTransformer, models

        # isort: split
        import torch

        self.packages = ("sentence-transformers", "transformers", "torch", *_BACKENDS[backend])
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
        pooled = models.Pooling(encoder.get_word_embedding_dimension(), pooling_mode=pooling.replace("_", ""))
        self._model = SentenceTransformer(modules=[encoder, pooled, models.Normalize()], device="cpu")

    def run(self, texts: Sequence[str], _heads: Sequence[str]) -> Any:
        self._model.encode(list(texts), batch_size=len(texts), show_progress_bar=False)
        return texts

    def work(self, result: Any) -> float:
        return float(self._model.tokenize(list(result))["attention_mask"].sum())

    def vectors(self, texts: Sequence[str], _heads: Sequence[str]) -> Vectors:
        return Vectors(self._model.encode(list(texts), batch_size=8, show_progress_bar=False), None, None)


class LlamaEncoder(Encoder):
    """llama.cpp through llama-cpp-python, dense only: what Ollama runs. `Llama.embed`.

    Texts go one by one. A call with several packs them into one row, whose attention then costs its square: 16 passages
    take more than twice as long that way. Unit length is ours to make, in numpy, because its own is a loop in Python.
    """

    packages = ("llama-cpp-python", "numpy")

    def __init__(self, model: str, pooling: str, max_tokens: int, threads: int) -> None:
        """Load a GGUF file; texts longer than `max_tokens` are cut."""
        from llama_cpp import Llama

        self._one_at_a_time = Lock()  # one context, which several callers would share
        self._llama = Llama(
            model,
            embedding=True,
            pooling_type=_LLAMA_POOLING[pooling],
            n_ctx=max_tokens,
            n_batch=max_tokens,
            n_ubatch=max_tokens,  # a text is one batch: every token sees every other
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def run(self, texts: Sequence[str], _heads: Sequence[str]) -> tuple[Any, int]:
        """(B, H) vectors, and tokens."""
        with self._one_at_a_time:
            found = [self._llama.embed(text, return_count=True) for text in texts]
        dense = np.array([vector for vector, _ in found], dtype=np.float32)
        dense /= np.linalg.norm(dense, axis=1, keepdims=True)
        return dense, sum(tokens for _, tokens in found)

    def work(self, result: tuple[Any, int]) -> float:
        return float(result[1])

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Vectors:
        return Vectors(self.run(texts, heads)[0], None, None)


_ENCODERS: dict[str, type[Encoder]] = {
    "bge-m3-lite": LiteEncoder,
    "flagembedding": FlagEncoder,
    "flagembedding reranker": FlagScorer,
    "sentence-transformers": SentenceEncoder,
    "llama-cpp": LlamaEncoder,
}


def open_peer(peer: str, **options: Any) -> Encoder:
    """What a peer runs, by the name of its environment."""
    return _ENCODERS[peer](**options)


if __name__ == "__main__":
    serve(open_peer)
