"""llama.cpp through llama-cpp-python, dense only, in its own environment: what Ollama runs.

Texts go one by one. A call with several packs them into one row, whose attention then costs its square: 16 passages
take more than twice as long that way.
"""

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np

from m3_bench.workers.serve import Encoder, serve
from m3_bench.workers.vectors import Vectors

_POOLING = {"mean": 1, "cls": 2, "last_token": 3}  # llama.h, LLAMA_POOLING_TYPE_*


class LlamaEncoder(Encoder):
    """`Llama.embed`; unit length is ours to make, in numpy, because its own is a loop in Python."""

    packages = ("llama-cpp-python", "numpy")

    def __init__(self, model: str, pooling: str, max_tokens: int, threads: int) -> None:
        """Load a GGUF file; texts longer than `max_tokens` are cut."""
        from llama_cpp import Llama

        self._one_at_a_time = Lock()  # one context, which several callers would share
        self._llama = Llama(
            model,
            embedding=True,
            pooling_type=_POOLING[pooling],
            n_ctx=max_tokens,
            n_batch=max_tokens,
            n_ubatch=max_tokens,  # a text is one batch: every token sees every other
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def run(self, texts: Sequence[str], _heads: Sequence[str]) -> Any:
        """See `serve.Encoder.run`."""
        with self._one_at_a_time:
            found = [self._llama.embed(text, return_count=True) for text in texts]
        dense = np.array([vector for vector, _ in found], dtype=np.float32)
        dense /= np.linalg.norm(dense, axis=1, keepdims=True)
        return dense, sum(tokens for _, tokens in found)

    def work(self, result: Any) -> float:
        """See `serve.Encoder.work`."""
        return float(result[1])

    def vectors(self, texts: Sequence[str], heads: Sequence[str]) -> Vectors:
        """See `serve.Encoder.vectors`."""
        return Vectors(self.run(texts, heads)[0], None, None)


if __name__ == "__main__":
    serve(LlamaEncoder)
