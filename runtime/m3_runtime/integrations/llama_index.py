"""LlamaIndex: `BaseEmbedding` of the dense head, the sparse encoder function of its stores, a reranker's postprocessor.

Needs the extra `llama-index`.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import ExtraNotInstalledError, InputError
from m3_runtime.integrations.plain_ranks import PlainRanks, checked_most
from m3_runtime.integrations.plain_vectors import EncoderArguments, PlainVectors, shared_encoder, shared_reranker
from m3_runtime.loading import OpenArguments
from m3_runtime.reranker import M3Reranker

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
except ImportError as error:
    raise ExtraNotInstalledError('this needs llama-index-core; pip install "m3-runtime[llama-index]"') from error

_BATCH_TEXTS = 32  # LlamaIndex' own default of 10 leaves little to batch by length

SparseRows = tuple[list[list[int]], list[list[float]]]


class M3Embedding(BaseEmbedding):
    """Dense vectors for `VectorStoreIndex(embed_model=…)`; the async methods run in a thread.

    `opened_with` and `max_length` are fields: LlamaIndex writes them down, takes vectors from its cache only where they
    are the same, and makes the same embedding of them in another process.

    >>> index = VectorStoreIndex.from_documents(documents, embed_model=M3Embedding("bge-m3-cpu"))  # doctest: +SKIP
    """

    opened_with: OpenArguments
    max_length: int | None
    _vectors: PlainVectors = PrivateAttr()

    def __init__(
        self,
        encoder: M3Encoder | str | Path | None = None,
        *,
        model_name: str | Path | None = None,
        opened_with: OpenArguments | Mapping[str, Any] | None = None,
        max_length: int | None = None,
        embed_batch_size: int = _BATCH_TEXTS,
        **more: Any,
    ) -> None:
        """Take an open encoder, which stays yours to close, or open a bundle, or share what another adapter opened.

        Args:
            encoder: an open encoder, or a bundle's folder.
            model_name: a bundle's folder, by LlamaIndex' name for it; no matter where `opened_with` is given.
            opened_with: what `to_dict` wrote.
            max_length: tokens per text; None as in `M3Encoder.encode`.
            embed_batch_size: how many texts LlamaIndex hands over at a time.
            **more: `EncoderArguments`, and what LlamaIndex' own class takes.

        Raises:
            M3Error: as `M3Encoder.open`, and InputError if no bundle is named.
            SpaceMismatchError: the folder of `opened_with` holds another space by now.
        """
        opening: Any = {name: more.pop(name) for name in EncoderArguments.__annotations__ if name in more}
        if opened_with is not None:
            known = opened_with if isinstance(opened_with, OpenArguments) else OpenArguments(**opened_with)
            encoder, model_name = known.open_again(shared_encoder), None
        vectors = PlainVectors(encoder, model_name=model_name, max_length=max_length, **opening)
        fields: dict[str, Any] = {"opened_with": vectors.encoder.opened_with, "max_length": max_length}
        name = vectors.encoder.bundle.manifest.source.name
        super().__init__(model_name=name, embed_batch_size=embed_batch_size, **fields, **more)
        self._vectors = vectors

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "__pydantic_private__": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # LlamaIndex' own goes on without the vectors if this fails, and says nothing.
        self.__init__(**state["__dict__"])  # type: ignore[misc]

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex logs it."""
        return "M3Embedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._vectors.dense(texts)

    def _get_text_embedding(self, text: str) -> list[float]:
        (vector,) = self._get_text_embeddings([text])
        return vector

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)  # M3 treats queries and passages alike

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class M3SparseEncoder(PlainVectors):
    """Lexical weights for `QdrantVectorStore(sparse_doc_fn=…, sparse_query_fn=…)`; one object serves both."""

    def __call__(self, texts: list[str]) -> SparseRows:
        """Token ids and weights of S texts, as two lists of S lists.

        Raises:
            InputError: a text is not what it must be; it is named by its index.
            HeadError: the bundle has no sparse head.
        """
        rows = self.lexical(texts)
        return [ids for ids, _ in rows], [weights for _, weights in rows]


class M3NodePostprocessor(BaseNodePostprocessor):
    """The best of the nodes that a retriever has found, for `as_query_engine(node_postprocessors=[…])`.

    A node's text is read with the metadata that LlamaIndex shows embedding models; scores are from 0 to 1. LlamaIndex
    writes the fields down and makes the same postprocessor of them in another process.

    >>> best = M3NodePostprocessor("bge-reranker-cpu")  # doctest: +SKIP
    >>> best.postprocess_nodes(nodes, query_str="How do bees talk?")  # doctest: +SKIP
    """

    opened_with: OpenArguments
    top_n: int | None
    max_length: int | None
    query_max_length: int | None
    _ranks: PlainRanks = PrivateAttr()

    def __init__(
        self,
        reranker: M3Reranker | str | Path | None = None,
        *,
        model: str | Path | None = None,
        opened_with: OpenArguments | Mapping[str, Any] | None = None,
        top_n: int | None = 2,
        max_length: int | None = None,
        query_max_length: int | None = None,
        **more: Any,
    ) -> None:
        """Take an open reranker, which stays yours to close, or open a bundle, or share what another adapter opened.

        Args:
            reranker: an open reranker, or a bundle's folder.
            model: a bundle's folder, by LlamaIndex' name for it; no matter where `opened_with` is given.
            opened_with: what `to_dict` wrote.
            top_n: how many nodes are kept; None keeps all.
            max_length: tokens per pair; None as in `M3Reranker.compute_score`.
            query_max_length: tokens per query, likewise.
            **more: `EncoderArguments`, and what LlamaIndex' own class takes.

        Raises:
            M3Error: as `M3Reranker.open`; InputError if no bundle is named, or for a bad number.
            SpaceMismatchError: the folder of `opened_with` holds another model by now.
        """
        opening: Any = {name: more.pop(name) for name in EncoderArguments.__annotations__ if name in more}
        if opened_with is not None:
            known = opened_with if isinstance(opened_with, OpenArguments) else OpenArguments(**opened_with)
            reranker, model = known.open_again(shared_reranker), None
        lengths: dict[str, Any] = {"max_length": max_length, "query_max_length": query_max_length}
        ranks = PlainRanks(reranker, model_name=model, **lengths, **opening)
        fields = {"opened_with": ranks.reranker.opened_with, "top_n": checked_most(top_n, "top_n"), **lengths}
        super().__init__(**fields, **more)
        self._ranks = ranks

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "__pydantic_private__": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["__dict__"])  # type: ignore[misc]  # as in `M3Embedding`

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex logs it."""
        return "M3NodePostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InputError("a reranker needs the query; pass query_str or query_bundle")
        texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        found = self._ranks.best(query_bundle.query_str, texts, self.top_n)
        return [NodeWithScore(node=nodes[i].node, score=score) for i, score in found]
