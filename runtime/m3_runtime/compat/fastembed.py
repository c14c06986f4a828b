"""fastembed's `TextEmbedding`, `SparseTextEmbedding` and `LateInteractionTextEmbedding` over a bundle: one head each.

Texts are taken as they are needed and vectors are given as they come, so that any number of them fits into memory.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head
from m3_runtime.bundle.reader import Bundle
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import checked_integer
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import HeadError, InputError
from m3_runtime.ignored import check_devices, warn_ignored
from m3_runtime.opened_model import check_kind
from m3_runtime.sequences import in_order
from m3_runtime.tokenizer import check_text, checked_texts

_Vectors = TypeVar("_Vectors")
_CPU_PROVIDERS = ("CPUExecutionProvider", "OpenVINOExecutionProvider")


@dataclass
class SparseEmbedding:
    """One text's lexical weights: `values` (N,) float32 of the token ids `indices` (N,) int64."""

    values: NDArray[np.float32]
    indices: NDArray[np.int64]

    def as_object(self) -> dict[str, NDArray[Any]]:
        """What qdrant-client takes as a sparse vector.

        >>> found = SparseEmbedding.from_dict({7: 0.5})
        >>> found.as_object()
        {'values': array([0.5], dtype=float32), 'indices': array([7])}
        """
        return {"values": self.values, "indices": self.indices}

    def as_dict(self) -> dict[int, float]:
        """Token id to weight."""
        return dict(zip(self.indices.tolist(), self.values.tolist(), strict=True))

    @classmethod
    def from_dict(cls, data: Mapping[int, float]) -> "SparseEmbedding":
        """Of token ids and weights."""
        return cls(np.array(list(data.values()), np.float32), np.array(list(data), np.int64))


class _Embedding(Generic[_Vectors]):
    """What the three classes have in common.

    Attributes:
        model_name: what it was made with.
        encoder: the `M3Encoder` that does the work.
    """

    _head: ClassVar[Head]

    def __init__(
        self,
        model_name: str | Path = "BAAI/bge-m3",
        cache_dir: str | None = None,
        threads: int | None = None,
        providers: Sequence[Any] | None = None,
        cuda: Any = False,
        device_ids: list[int] | None = None,
        lazy_load: bool = False,
        **more: Any,
    ) -> None:
        """Open a bundle. Arguments are fastembed's, with these differences.

        `model_name` is a bundle's folder, unless `specific_model_path` is one. `cache_dir` and `local_files_only` have
        no effect, as nothing is downloaded, nor has `lazy_load`: the bundle is opened now. `providers`, `cuda` and
        `device_ids` that are not the CPU's give a warning. `threads`, `variant`, `engine` and `low_memory` are those of
        `M3Encoder.open`.

        Raises:
            M3Error: as `M3Encoder.open`; HeadError where the bundle lacks the head, InputError for an unknown argument.

        Warns:
            IgnoredArgumentWarning: another device than the CPU is asked for.
        """
        path = more.pop("specific_model_path", None) or model_name
        more.pop("local_files_only", None)
        if unknown := sorted(more.keys() - {"variant", "engine", "low_memory"}):
            raise InputError(f"{unknown[0]} is not possible in this runtime; leave it out")
        _check_cpu(providers, cuda, device_ids)
        self.model_name, self.threads = str(model_name), threads
        self.encoder = M3Encoder.open(path, threads=threads, **more)
        try:
            self.encoder.encode_heads([], {self._head})
        except HeadError:
            self.encoder.close()
            raise

    def embed(
        self, documents: str | Iterable[str], batch_size: int = 256, parallel: int | None = None
    ) -> Iterator[_Vectors]:
        """The vectors of S texts, one after the other, each cut at the model's limit.

        `batch_size` of them are taken and encoded at a time. How many were cut is logged as a warning by "m3_runtime".
        The engine uses all threads, so `parallel` processes give a warning and are not started.

        Raises:
            InputError: a text is not what it must be; it is named by its index.
            EngineError: the engine failed, or the encoder is closed.

        Warns:
            IgnoredArgumentWarning: several processes are asked for.
        """
        if parallel not in (None, 1):
            warn_ignored(f"parallel={parallel!r}: one engine computes with all its threads; use threads= for more")
        checked_integer(batch_size, "batch_size")
        done = 0
        for texts in _batches(documents, batch_size):
            for place, text in enumerate(texts, done):
                check_text(text, f"text {place}")
            found = self.encoder.encode_heads(
                texts, {self._head}, batch_size=batch_size, max_length=self.encoder.max_tokens
            )
            yield from self._each(found.logged())
            done += len(texts)

    def query_embed(self, query: str | Iterable[str], **options: Any) -> Iterator[_Vectors]:
        """`embed`: M3 treats queries and passages alike."""
        return self.embed(query, **options)

    def passage_embed(self, texts: Iterable[str], **options: Any) -> Iterator[_Vectors]:
        """`embed`: M3 treats queries and passages alike."""
        return self.embed(texts, **options)

    def token_count(self, texts: str | Iterable[str], batch_size: int = 1024) -> int:
        """How many tokens are encoded of these texts, special tokens included."""
        limit, tokenizer = self.encoder.max_tokens, self.encoder.tokenizer
        batches = _batches(texts, batch_size)
        return sum(int(tokenizer.encode_batch(checked_texts(batch), limit).lengths.sum()) for batch in batches)

    def close(self) -> None:
        """Let go of the graph and its memory."""
        self.encoder.close()

    def _each(self, found: Encoding) -> Iterable[_Vectors]:
        raise NotImplementedError


class _SizedEmbedding(_Embedding[NDArray[np.float32]]):
    """Vectors of one size."""

    def _each(self, found: Encoding) -> Iterable[NDArray[np.float32]]:
        vectors = found.dense_vecs if self._head is Head.DENSE else found.colbert_vecs
        assert vectors is not None
        return vectors

    @property
    def embedding_size(self) -> int:
        """Dimensions of a vector."""
        return _size(self.encoder.bundle, self._head)

    @classmethod
    def get_embedding_size(cls, model_name: str | Path) -> int:
        """Dimensions of a vector of the bundle in that folder.

        Raises:
            BundleError: there is none.
            InputError: it is a reranker's, which has no vectors.
        """
        bundle = Bundle.open(model_name)
        check_kind(bundle, is_reranker=False)
        return _size(bundle, cls._head)


class TextEmbedding(_SizedEmbedding):
    """Dense vectors, (H,) float32 each.

    >>> list(TextEmbedding("bge-m3-cpu").embed(["Bees dance."]))  # doctest: +SKIP
    """

    _head = Head.DENSE


class LateInteractionTextEmbedding(_SizedEmbedding):
    """ColBERT vectors, (L-1, C) float32 each; M3 was not trained on queries filled up with mask tokens."""

    _head = Head.COLBERT


class SparseTextEmbedding(_Embedding[SparseEmbedding]):
    """Lexical weights.

    >>> next(SparseTextEmbedding("bge-m3-cpu").query_embed("bees")).as_object()  # doctest: +SKIP
    """

    _head = Head.SPARSE

    def _each(self, found: Encoding) -> Iterable[SparseEmbedding]:
        assert found.sparse is not None
        return (SparseEmbedding(weights, ids) for ids, weights in found.sparse.rows())


def _check_cpu(providers: Sequence[Any] | None, cuda: Any, device_ids: list[int] | None) -> None:
    names = [provider if isinstance(provider, str) else provider[0] for provider in providers or ()]
    others = [name for name in names if name not in _CPU_PROVIDERS]
    is_cuda = str(getattr(cuda, "value", cuda)).lower() in ("true", "cuda")  # a bool, or fastembed's Device
    if others or is_cuda or device_ids:
        check_devices(others or "cuda", "providers" if others else "cuda")


def _batches(texts: str | Iterable[str], size: int) -> Iterator[list[str]]:
    waiting = in_order([texts] if isinstance(texts, str) else texts, "expected a text or texts")
    while some := list(islice(waiting, size)):
        yield some


def _size(bundle: Bundle, head: Head) -> int:
    geometry = bundle.manifest.geometry
    size = geometry.hidden_size if head is Head.DENSE else geometry.colbert_dim
    if size is None:
        raise HeadError(f"the bundle has no {head.value} head")
    return size
