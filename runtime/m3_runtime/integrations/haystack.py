"""Haystack: text and document embedders of the dense head, of the sparse head, and of both; a reranker's ranker.

Needs the extra `haystack`.

A component is made of plain values, which Haystack writes into a pipeline's file. It opens its bundle when it is made,
so a bundle that does not open is an error when the pipeline is loaded, not at the first question. An encoder takes the
memory of its model, so components with the same values share one (see `shared_encoder`); it is freed with the last of
them.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

from m3_runtime.bundle.manifest import Head
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines.select import AUTO
from m3_runtime.errors import InputError
from m3_runtime.extras import needs_extra
from m3_runtime.integrations.adapters import EncoderArguments, PlainRanks, PlainVectors, checked_most, shared_encoder
from m3_runtime.opened_model import OpenedModel
from m3_runtime.reranker import M3Reranker

with needs_extra("haystack-ai", "haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.dataclasses import SparseEmbedding

__all__ = [
    "M3DocumentEmbedder",
    "M3HybridDocumentEmbedder",
    "M3HybridTextEmbedder",
    "M3Ranker",
    "M3SparseDocumentEmbedder",
    "M3SparseTextEmbedder",
    "M3TextEmbedder",
    "shared_encoder",
]

_DENSE, _SPARSE = "embedding", "sparse_embedding"  # Haystack's names, in documents and between components


class _Component:
    """A component that Haystack writes into a pipeline's file: by the values that it was made of, its attributes."""

    meta_fields_to_embed: list[str]
    embedding_separator: str
    _values: Mapping[str, Any]

    def _keep(self, given: OpenedModel | str | Path, opening: EncoderArguments, **others: Any) -> None:
        """Remember how the bundle was opened, in values that Haystack can write, and other arguments."""
        how: dict[str, Any] = (
            asdict(given.opened_with) if isinstance(given, OpenedModel) else {**opening, "path": given}
        )
        cache_dir = how.get("cache_dir")
        self._values = {
            "bundle": str(how["path"]),
            "variant": how.get("variant", AUTO),
            "threads": how.get("threads"),
            "cache_dir": None if cache_dir is None else str(cache_dir),
            "low_memory": how.get("low_memory", False),
            **others,
        }
        vars(self).update(self._values)

    def warm_up(self) -> None:
        """Nothing is left to do; for code that was written for components which load late."""

    def to_dict(self) -> dict[str, Any]:
        """The values it was made of, as Haystack writes them."""
        return default_to_dict(self, **{name: getattr(self, name) for name in self._values})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """A component of the values that `to_dict` gave.

        Raises:
            M3Error: as when it is made.
            haystack.DeserializationError: these are the values of another class.
        """
        return default_from_dict(cls, data)

    def _texts(self, documents: list[Document]) -> list[str]:
        """What is read of documents, as Haystack's own components put it together: no field that is not there, or None.

        Raises:
            InputError: no list, or an item is no document; its index is named.
        """
        if not isinstance(documents, list):
            got = type(documents).__name__
            raise InputError(f"documents must be a list of Documents, got {got}; a text goes to a text embedder")
        texts = []
        for index, document in enumerate(documents):
            if not isinstance(document, Document):
                raise InputError(f"documents[{index}] must be a Document, got {type(document).__name__}")
            fields = (document.meta.get(name) for name in self.meta_fields_to_embed)
            known = [str(field) for field in fields if field is not None]
            texts.append(self.embedding_separator.join([*known, document.content or ""]))
        return texts


class _Embedder(_Component, PlainVectors):
    """What all embedders have in common."""

    max_length: int | None
    _heads: ClassVar[tuple[Head, ...]]
    _outputs: ClassVar[dict[str, Any]]

    def __init__(
        self, bundle: M3Encoder | str | Path, *, max_length: int | None = None, **opening: Unpack[EncoderArguments]
    ) -> None:
        """Open the bundle, or share what another component has opened.

        Args:
            bundle: the bundle's folder, or an open encoder, which stays yours to close.
            max_length: tokens per text; None as in `M3Encoder.encode`.
            **opening: see `EncoderArguments`.

        Raises:
            M3Error: as `M3Encoder.open`; HeadError where the bundle lacks a head, InputError for a bad `max_length`.
        """
        super().__init__(bundle, max_length=max_length, **opening)
        self._keep(bundle, opening, max_length=max_length)
        self._vectors([])  # a head that is not there, or a bad length, is an error now
        # Haystack's decorator of `run` would need a `run` in each class, as the outputs are not the same.
        component.set_output_types(self, **self._outputs)

    def _vectors(self, texts: list[str]) -> list[dict[str, Any]]:
        """Per text its vectors, under Haystack's names."""
        found = self.encoder.encode_heads(texts, self._heads, max_length=self.max_length).logged()
        columns: dict[str, list[Any]] = {}
        if found.dense_vecs is not None:
            columns[_DENSE] = found.dense_vecs.tolist()
        if found.sparse is not None:
            columns[_SPARSE] = [SparseEmbedding(ids.tolist(), weights.tolist()) for ids, weights in found.sparse.rows()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


class _TextEmbedder(_Embedder):
    """`run` gives the vectors of `_heads`."""

    def run(self, text: str) -> dict[str, Any]:
        """The vectors of a text, a question, say; M3 treats questions and documents alike.

        Returns:
            "embedding": H floats, of unit length; "sparse_embedding": token ids and weights; or both.

        Raises:
            InputError: the text is not what it must be.
        """
        if not isinstance(text, str):
            raise InputError(f"text must be a str, got {type(text).__name__}; documents go to a document embedder")
        (vectors,) = self._vectors([text])
        return vectors

    async def run_async(self, text: str) -> dict[str, Any]:
        """`run`, in a thread."""
        return await asyncio.to_thread(self.run, text)


class _DocumentEmbedder(_Embedder):
    """`run` gives copies of documents, with the vectors of `_heads`."""

    _outputs: ClassVar[dict[str, Any]] = {"documents": list[Document]}

    def __init__(
        self,
        bundle: M3Encoder | str | Path,
        *,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        max_length: int | None = None,
        **opening: Unpack[EncoderArguments],
    ) -> None:
        """Open the bundle, or share what another component has opened.

        Arguments are those of the other embedders, and `meta_fields_to_embed`: names of metadata that are put before a
        document's content, in this order, with `embedding_separator` between them.

        Raises:
            M3Error: as `M3Encoder.open`; HeadError where the bundle lacks a head, InputError for another bad argument.
        """
        read = _read_fields(meta_fields_to_embed, embedding_separator)
        super().__init__(bundle, max_length=max_length, **opening)
        self._keep(bundle, opening, max_length=max_length, **read)

    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Copies of S documents, with their vectors. One without content counts as an empty text.

        Returns:
            "documents": S documents in their order.

        Raises:
            InputError: a document or its text is not what it must be; it is named by its index.
        """
        rows = self._vectors(self._texts(documents))
        return {"documents": [replace(document, **row) for document, row in zip(documents, rows, strict=True)]}

    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """`run`, in a thread."""
        return await asyncio.to_thread(self.run, documents)


def _read_fields(meta_fields_to_embed: list[str] | None, embedding_separator: str) -> dict[str, Any]:
    """What of a document is read before its content, by Haystack's names.

    Raises:
        InputError: one is not what it must be.
    """
    if isinstance(meta_fields_to_embed, str):  # its letters would pass for names
        raise InputError(f"meta_fields_to_embed must be a list of names, got {meta_fields_to_embed!r}")
    if not isinstance(embedding_separator, str):
        raise InputError(f"embedding_separator must be a str, got {type(embedding_separator).__name__}")
    return {"meta_fields_to_embed": list(meta_fields_to_embed or ()), "embedding_separator": embedding_separator}


@component
class M3TextEmbedder(_TextEmbedder):
    """The dense vector of a question, as "embedding".

    >>> M3TextEmbedder("bge-m3-cpu").run("How do bees talk?")["embedding"]  # doctest: +SKIP
    """

    _heads = (Head.DENSE,)
    _outputs: ClassVar[dict[str, Any]] = {_DENSE: list[float]}


@component
class M3DocumentEmbedder(_DocumentEmbedder):
    """Documents with their dense vector in `embedding`.

    >>> embedder = M3DocumentEmbedder("bge-m3-cpu", meta_fields_to_embed=["title"])  # doctest: +SKIP
    >>> embedder.run([Document(content="Bees dance.")])["documents"][0].embedding  # doctest: +SKIP
    """

    _heads = (Head.DENSE,)


@component
class M3SparseTextEmbedder(_TextEmbedder):
    """The lexical weights of a question, as "sparse_embedding"."""

    _heads = (Head.SPARSE,)
    _outputs: ClassVar[dict[str, Any]] = {_SPARSE: SparseEmbedding}


@component
class M3SparseDocumentEmbedder(_DocumentEmbedder):
    """Documents with their lexical weights in `sparse_embedding`."""

    _heads = (Head.SPARSE,)


@component
class M3HybridTextEmbedder(_TextEmbedder):
    """Both vectors of a question, "embedding" and "sparse_embedding", from one encode."""

    _heads = (Head.DENSE, Head.SPARSE)
    _outputs: ClassVar[dict[str, Any]] = {_DENSE: list[float], _SPARSE: SparseEmbedding}


@component
class M3HybridDocumentEmbedder(_DocumentEmbedder):
    """Documents with both vectors, `embedding` and `sparse_embedding`, from one encode: half the time of one each."""

    _heads = (Head.DENSE, Head.SPARSE)


class _Ranker(_Component, PlainRanks):
    """How a ranker is made. Haystack's decorator breaks `super()` in what it takes."""

    top_k: int | None
    score_threshold: float | None

    def __init__(
        self,
        bundle: M3Reranker | str | Path,
        *,
        top_k: int | None = 10,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        score_threshold: float | None = None,
        max_length: int | None = None,
        query_max_length: int | None = None,
        **opening: Unpack[EncoderArguments],
    ) -> None:
        """Open the bundle, or share what another component has opened.

        `bundle` is a reranker's folder, or an open reranker, which stays yours to close. `top_k` documents are kept,
        None keeps all; those with a score below `score_threshold` are left out. Fields are read as by the document
        embedders. Lengths, in tokens per pair and query, are those of `M3Reranker.compute_score`. For the others see
        `EncoderArguments`.

        Raises:
            M3Error: as `M3Reranker.open`, and InputError for another bad argument.
        """
        read = _read_fields(meta_fields_to_embed, embedding_separator)
        super().__init__(bundle, max_length=max_length, query_max_length=query_max_length, **opening)
        kept = {"top_k": checked_most(top_k, "top_k"), "score_threshold": score_threshold}
        self._keep(bundle, opening, **kept, **self._lengths, **read)


@component
class M3Ranker(_Ranker):
    """The best of the documents that a retriever has found, with scores from 0 to 1.

    >>> M3Ranker("bge-reranker-cpu").run("How do bees talk?", found)["documents"]  # doctest: +SKIP
    """

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """Copies of the best documents, with their scores; `top_k` counts instead of the component's.

        Returns:
            "documents": the best first.

        Raises:
            InputError: the query, a document or its text is not what it must be, or empty; it is named by its index.
        """
        found = self.best(query, self._texts(documents), self.top_k if top_k is None else checked_most(top_k, "top_k"))
        least = float("-inf") if self.score_threshold is None else self.score_threshold
        return {"documents": [replace(documents[i], score=score) for i, score in found if score >= least]}

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """`run`, in a thread."""
        return await asyncio.to_thread(self.run, query, documents, top_k)
