"""Haystack: text and document embedders of the dense head, of the sparse head, and of both; a reranker's ranker.

Needs the extra `haystack`.

A component is made of plain values, which Haystack writes into a pipeline's file. It opens its bundle when it is made,
so a bundle that does not open is an error when the pipeline is loaded, not at the first question. An encoder takes the
memory of its model, so components with the same values share one (see `shared_encoder`); it is freed with the last of
them.
"""

import asyncio
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

from m3_runtime.bundle.manifest import Head
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines.select import AUTO
from m3_runtime.errors import ExtraNotInstalledError, InputError
from m3_runtime.integrations.plain_ranks import PlainRanks, checked_most
from m3_runtime.integrations.plain_vectors import EncoderArguments, PlainVectors, shared_encoder
from m3_runtime.loading import OpenArguments
from m3_runtime.reranker import M3Reranker

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.dataclasses import SparseEmbedding
except ImportError as error:
    raise ExtraNotInstalledError('this needs haystack-ai; pip install "m3-runtime[haystack]"') from error

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


class _Embedder(PlainVectors):
    """What all embedders have in common: the values that they are made of, and the encoder."""

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
        given = bundle.opened_with if isinstance(bundle, M3Encoder) else bundle
        self._opening = _opening_values(given, opening)
        vars(self).update(self._opening)
        self.max_length = max_length
        self._vectors([])  # a head that is not there, or a bad length, is an error now
        # Haystack's decorator of `run` would need a `run` in each class, as the outputs are not the same.
        component.set_output_types(self, **self._outputs)

    def warm_up(self) -> None:
        """Nothing is left to do; for code that was written for embedders which load late."""

    def to_dict(self) -> dict[str, Any]:
        """The values it was made of, as Haystack writes them."""
        return default_to_dict(self, **self._opening, max_length=self.max_length)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """A component of the values that `to_dict` gave.

        Raises:
            M3Error: as when it is made.
            haystack.DeserializationError: these are the values of another class.
        """
        return default_from_dict(cls, data)

    def _vectors(self, texts: list[str]) -> list[dict[str, Any]]:
        """Per text its vectors, under Haystack's names."""
        found = self.encoder.encode_heads(texts, self._heads, max_length=self.max_length).logged()
        columns: dict[str, list[Any]] = {}
        if found.dense_vecs is not None:
            columns[_DENSE] = found.dense_vecs.tolist()
        if found.sparse is not None:
            columns[_SPARSE] = [SparseEmbedding(ids.tolist(), weights.tolist()) for ids, weights in found.sparse.rows()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _opening_values(bundle: OpenArguments | str | Path, opening: EncoderArguments) -> dict[str, Any]:
    """How a component's bundle is opened, in values that Haystack can write."""
    values: dict[str, Any] = asdict(bundle) if isinstance(bundle, OpenArguments) else {**opening, "path": str(bundle)}
    cache_dir = values.get("cache_dir")
    return {
        "bundle": values["path"],
        "variant": values.get("variant", AUTO),
        "threads": values.get("threads"),
        "cache_dir": None if cache_dir is None else str(cache_dir),
        "low_memory": values.get("low_memory", False),
    }


class _TextEmbedder(_Embedder):
    """`run` gives the vectors of `_heads`."""

    def run(self, text: str) -> dict[str, Any]:
        """The vectors of a text.

        Args:
            text: a question, say; M3 treats questions and documents alike.

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

        Args:
            bundle: the bundle's folder, or an open encoder, which stays yours to close.
            meta_fields_to_embed: names of metadata that are put before a document's content, in this order.
            embedding_separator: what stands between them.
            max_length: tokens per text; None as in `M3Encoder.encode`.
            **opening: see `EncoderArguments`.

        Raises:
            M3Error: as `M3Encoder.open`; HeadError where the bundle lacks a head, InputError for another bad argument.
        """
        self._read = _ReadFields.of(meta_fields_to_embed, embedding_separator)
        super().__init__(bundle, max_length=max_length, **opening)
        self.meta_fields_to_embed, self.embedding_separator = list(self._read.names), embedding_separator

    def to_dict(self) -> dict[str, Any]:
        """The values it was made of, as Haystack writes them."""
        written = super().to_dict()
        written["init_parameters"] |= self._read.to_dict()
        return written

    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Copies of documents, with their vectors; those that came in stay as they are.

        Args:
            documents: S of them; one without content counts as an empty text.

        Returns:
            "documents": S documents in their order.

        Raises:
            InputError: a document or its text is not what it must be; it is named by its index.
        """
        rows = self._vectors([self._read.text(document) for document in _checked(documents)])
        return {"documents": [replace(document, **row) for document, row in zip(documents, rows, strict=True)]}

    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """`run`, in a thread."""
        return await asyncio.to_thread(self.run, documents)


@dataclass(frozen=True)
class _ReadFields:
    """What of a document is read: some of its metadata, and its content."""

    names: tuple[str, ...]
    separator: str

    @classmethod
    def of(cls, meta_fields_to_embed: list[str] | None, embedding_separator: str) -> Self:
        """By Haystack's names for them.

        Raises:
            InputError: one is not what it must be.
        """
        if isinstance(meta_fields_to_embed, str):  # its letters would pass for names
            raise InputError(f"meta_fields_to_embed must be a list of names, got {meta_fields_to_embed!r}")
        if not isinstance(embedding_separator, str):
            raise InputError(f"embedding_separator must be a str, got {type(embedding_separator).__name__}")
        return cls(tuple(meta_fields_to_embed or ()), embedding_separator)

    def to_dict(self) -> dict[str, Any]:
        """As Haystack writes them."""
        return {"meta_fields_to_embed": list(self.names), "embedding_separator": self.separator}

    def text(self, document: Document) -> str:
        """As Haystack's own embedders put it together: fields that are not there, or None, are left out."""
        values = (document.meta.get(name) for name in self.names)
        known = [str(value) for value in values if value is not None]
        return self.separator.join([*known, document.content or ""])


def _checked(documents: object) -> list[Document]:
    """The documents, each one looked at.

    Raises:
        InputError: no list, or an item is no document; its index is named.
    """
    if not isinstance(documents, list):
        got = type(documents).__name__
        raise InputError(f"documents must be a list of Documents, got {got}; a text goes to a text embedder")
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InputError(f"documents[{index}] must be a Document, got {type(document).__name__}")
    return documents


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


class _Ranker(PlainRanks):
    """The values that a ranker is made of, and the reranker. Haystack's decorator breaks `super()` in what it takes."""

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

        Args:
            bundle: a reranker's bundle, or an open reranker, which stays yours to close.
            top_k: how many documents are kept; None keeps all.
            meta_fields_to_embed: names of metadata that are put before a document's content, in this order.
            embedding_separator: what stands between them.
            score_threshold: documents with a lower score are left out; None leaves out none.
            max_length: tokens per pair; None as in `M3Reranker.compute_score`.
            query_max_length: tokens per query, likewise.
            **opening: see `EncoderArguments`.

        Raises:
            M3Error: as `M3Reranker.open`, and InputError for another bad argument.
        """
        self._read = _ReadFields.of(meta_fields_to_embed, embedding_separator)
        super().__init__(bundle, max_length=max_length, query_max_length=query_max_length, **opening)
        given = bundle.opened_with if isinstance(bundle, M3Reranker) else bundle
        self._opening = _opening_values(given, opening)
        self.top_k, self.score_threshold = checked_most(top_k, "top_k"), score_threshold

    def warm_up(self) -> None:
        """Nothing is left to do; for code that was written for rankers which load late."""

    def to_dict(self) -> dict[str, Any]:
        """The values it was made of, as Haystack writes them."""
        values = {**self._opening, **self._lengths, **self._read.to_dict()}
        return default_to_dict(self, **values, top_k=self.top_k, score_threshold=self.score_threshold)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """A component of the values that `to_dict` gave.

        Raises:
            M3Error: as when it is made.
            haystack.DeserializationError: these are the values of another class.
        """
        return default_from_dict(cls, data)


@component
class M3Ranker(_Ranker):
    """The best of the documents that a retriever has found, with scores from 0 to 1.

    >>> M3Ranker("bge-reranker-cpu").run("How do bees talk?", found)["documents"]  # doctest: +SKIP
    """

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """Copies of the best documents, with their scores; those that came in stay as they are.

        Args:
            query: the query.
            documents: S of them.
            top_k: instead of the component's.

        Returns:
            "documents": the best first.

        Raises:
            InputError: the query, a document or its text is not what it must be, or empty; it is named by its index.
        """
        texts = [self._read.text(document) for document in _checked(documents)]
        found = self.best(query, texts, self.top_k if top_k is None else checked_most(top_k, "top_k"))
        least = float("-inf") if self.score_threshold is None else self.score_threshold
        return {"documents": [replace(documents[i], score=score) for i, score in found if score >= least]}

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """`run`, in a thread."""
        return await asyncio.to_thread(self.run, query, documents, top_k)
