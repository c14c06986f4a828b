"""Haystack: text and document embedders of the dense head, of the sparse head, and of both from one encode.

Needs the extra `haystack`.

A component is made of plain values, which Haystack writes into a pipeline's file, and its bundle is open once it is
made: a bundle that does not open is an error when the pipeline is loaded, not at the first question, and nothing is
left to warm up. An encoder takes the memory of its model, so components with the same values share one, those of a
loaded pipeline too (see `shared_encoder`). It goes with the last of them; a component has no `close`, which would take
the encoder from the others.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Self
from weakref import WeakValueDictionary

from m3_runtime.bundle.manifest import FileEntry, Head
from m3_runtime.bundle.reader import Bundle
from m3_runtime.cpu import default_threads
from m3_runtime.encode.options import checked_threads
from m3_runtime.encoder import M3Encoder
from m3_runtime.engines.select import AUTO, choose_variant
from m3_runtime.errors import ExtraNotInstalledError, InputError

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

_Key = tuple[Path, tuple[FileEntry, ...], str, int, bool]
_encoders: WeakValueDictionary[_Key, M3Encoder] = WeakValueDictionary()
_opening = Lock()  # two threads that ask at the same time get one encoder


def shared_encoder(
    bundle: str | Path,
    *,
    variant: str = AUTO,
    threads: int | None = None,
    cache_dir: str | Path | None = None,
    low_memory: bool = False,
) -> M3Encoder:
    """The encoder of components with this bundle, variant, threads and low_memory; opened if there is none.

    It is open for as long as somebody holds it. Do not close it: others may use it.

    Args:
        bundle: the bundle's folder.
        variant: as in `M3Encoder.open`.
        threads: as in `M3Encoder.open`.
        cache_dir: as in `M3Encoder.open`.
        low_memory: as in `M3Encoder.open`.

    Raises:
        M3Error: as `M3Encoder.open`.
    """
    thread_count = default_threads() if threads is None else checked_threads(threads)
    checked = Bundle.open(bundle)
    chosen = choose_variant(checked, variant)
    # The digests are in the key because another export may have taken the folder's place.
    key = (checked.folder.resolve(), checked.manifest.files, chosen.name, thread_count, low_memory)
    with _opening:
        found = _encoders.get(key)
        if found is None:
            found = M3Encoder.from_bundle(checked, chosen, thread_count, cache_dir=cache_dir, low_memory=low_memory)
            _encoders[key] = found
        return found


class _Embedder:
    """What all embedders have in common: the values that they are made of, and the encoder."""

    _heads: ClassVar[tuple[Head, ...]]
    _outputs: ClassVar[dict[str, Any]]

    def __init__(
        self,
        bundle: str | Path,
        *,
        variant: str = AUTO,
        threads: int | None = None,
        cache_dir: str | Path | None = None,
        low_memory: bool = False,
        max_length: int | None = None,
    ) -> None:
        """Open the bundle, or share what another component has opened.

        Args:
            bundle: the bundle's folder.
            variant: as in `M3Encoder.open`.
            threads: as in `M3Encoder.open`.
            cache_dir: as in `M3Encoder.open`.
            low_memory: as in `M3Encoder.open`.
            max_length: tokens per text; None as in `M3Encoder.encode`.

        Raises:
            M3Error: as `M3Encoder.open`; HeadError where the bundle lacks a head, InputError for a bad `max_length`.
        """
        self._encoder = shared_encoder(
            bundle, variant=variant, threads=threads, cache_dir=cache_dir, low_memory=low_memory
        )
        self.bundle, self.variant, self.threads = str(bundle), variant, threads
        self.cache_dir = None if cache_dir is None else str(cache_dir)
        self.low_memory, self.max_length = low_memory, max_length
        self._vectors([])  # a head that is not there, or a bad length, is an error now
        # Haystack's decorator of `run` would need a `run` in each class, as the outputs are not the same.
        component.set_output_types(self, **self._outputs)

    def warm_up(self) -> None:
        """Nothing is left to do; for code that was written for embedders which load late."""

    def to_dict(self) -> dict[str, Any]:
        """The values it was made of, as Haystack writes them."""
        return default_to_dict(
            self,
            bundle=self.bundle,
            variant=self.variant,
            threads=self.threads,
            cache_dir=self.cache_dir,
            low_memory=self.low_memory,
            max_length=self.max_length,
        )

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
        found = self._encoder.encode_corpus(
            texts,
            max_length=self.max_length,
            return_dense=Head.DENSE in self._heads,
            return_sparse=Head.SPARSE in self._heads,
        )
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
            "embedding": H floats, of length 1; "sparse_embedding": token ids and weights; or both.

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
        bundle: str | Path,
        *,
        variant: str = AUTO,
        threads: int | None = None,
        cache_dir: str | Path | None = None,
        low_memory: bool = False,
        max_length: int | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        """Open the bundle, or share what another component has opened.

        Args:
            bundle: the bundle's folder.
            variant: as in `M3Encoder.open`.
            threads: as in `M3Encoder.open`.
            cache_dir: as in `M3Encoder.open`.
            low_memory: as in `M3Encoder.open`.
            max_length: tokens per text; None as in `M3Encoder.encode`.
            meta_fields_to_embed: names of metadata that are put before a document's content, in this order.
            embedding_separator: what stands between them.

        Raises:
            M3Error: as `M3Encoder.open`; HeadError where the bundle lacks a head, InputError for another bad argument.
        """
        if isinstance(meta_fields_to_embed, str):  # its letters would pass for names
            raise InputError(f"meta_fields_to_embed must be a list of names, got {meta_fields_to_embed!r}")
        if not isinstance(embedding_separator, str):
            raise InputError(f"embedding_separator must be a str, got {type(embedding_separator).__name__}")
        super().__init__(
            bundle,
            variant=variant,
            threads=threads,
            cache_dir=cache_dir,
            low_memory=low_memory,
            max_length=max_length,
        )
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
