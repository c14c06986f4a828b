"""Haystack: text and document embedders of the dense head, of the sparse head, and of both from one encode.

Needs the extra `haystack`.

A component is made of plain values, which Haystack writes into a pipeline's file. It opens its bundle when it is made,
so a bundle that does not open is an error when the pipeline is loaded, not at the first question. An encoder takes the
memory of its model, so components with the same values share one (see `shared_encoder`); it is freed with the last of
them.
"""

import asyncio
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

from m3_runtime.bundle.manifest import Head
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines.select import AUTO
from m3_runtime.errors import ExtraNotInstalledError, InputError
from m3_runtime.integrations.plain_vectors import EncoderArguments, PlainVectors, shared_encoder

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.dataclasses import SparseEmbedding
except ImportError as error:
    raise ExtraNotInstalledError('this needs haystack-ai; pip install "m3-runtime[haystack]"') from error

__all__ = [
    "M3DocumentEmbedder",
    "M3HybridDocumentEmbedder",
    "M3HybridTextEmbedder",
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
        values: dict[str, Any] = {**opening, "path": str(bundle)}
        if isinstance(bundle, M3Encoder):
            values = asdict(bundle.opened_with)
        self.bundle, self.max_length = values["path"], max_length
        self.variant, self.threads = values.get("variant", AUTO), values.get("threads")
        self.cache_dir = None if (cache_dir := values.get("cache_dir")) is None else str(cache_dir)
        self.low_memory = values.get("low_memory", False)
        self._vectors([])  # a head that is not there, or a bad length, is an error now
        # Haystack's decorator of `run` would need a `run` in each class, as the outputs are not the same.
        component.set_output_types(self, **self._outputs)

    def warm_up(self) -> None:
        """Nothing is left to do; for code that was written for embedders which load late."""

    def to_dict(self) -> dict[str, Any]:
        """The values it was made of, as Haystack writes them."""
        names = ("bundle", "variant", "threads", "cache_dir", "low_memory", "max_length")
        return default_to_dict(self, **{name: getattr(self, name) for name in names})

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
        found = self.encoder.encode_heads(texts, self._heads, max_length=self.max_length)
        columns: dict[str, list[Any]] = {}
        if found.dense_vecs is not None:
            columns[_DENSE] = found.dense_vecs.tolist()
        if found.sparse is not None:
            columns[_SPARSE] = [SparseEmbedding(ids.tolist(), weights.tolist()) for ids, weights in found.sparse.rows()]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


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
        if isinstance(meta_fields_to_embed, str):  # its letters would pass for names
            raise InputError(f"meta_fields_to_embed must be a list of names, got {meta_fields_to_embed!r}")
        if not isinstance(embedding_separator, str):
            raise InputError(f"embedding_separator must be a str, got {type(embedding_separator).__name__}")
        super().__init__(bundle, max_length=max_length, **opening)
        self.meta_fields_to_embed = list(meta_fields_to_embed or ())
        self.embedding_separator = embedding_separator

    def to_dict(self) -> dict[str, Any]:
        """The values it was made of, as Haystack writes them."""
        written = super().to_dict()
        written["init_parameters"] |= {
            "meta_fields_to_embed": self.meta_fields_to_embed,
            "embedding_separator": self.embedding_separator,
        }
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
        rows = self._vectors([self._text(document) for document in _checked(documents)])
        return {"documents": [replace(document, **row) for document, row in zip(documents, rows, strict=True)]}

    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """`run`, in a thread."""
        return await asyncio.to_thread(self.run, documents)

    def _text(self, document: Document) -> str:
        """As Haystack's own embedders put it together: fields that are not there, or None, are left out."""
        values = (document.meta.get(name) for name in self.meta_fields_to_embed)
        known = [str(value) for value in values if value is not None]
        return self.embedding_separator.join([*known, document.content or ""])


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
