"""LlamaIndex: `BaseEmbedding` of the dense head, the sparse encoder function of its stores, a reranker's postprocessor.

Needs the extra `llama-index`.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError
from m3_runtime.extras import needs_extra
from m3_runtime.ignored import taken_from
from m3_runtime.integrations.adapters import EncoderArguments, PlainRanks, PlainVectors, checked_most
from m3_runtime.opened_model import OpenArguments
from m3_runtime.reranker import M3Reranker

with needs_extra("llama-index-core", "llama-index"):
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.embeddings import BaseEmbedding
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

_BATCH_TEXTS = 32  # LlamaIndex' own default of 10 leaves little to batch by length


class _MadeOfFields:
    """What LlamaIndex makes again of the fields of another one, in another process as well."""

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return {**state, "__pydantic_private__": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # LlamaIndex' own goes on without the model if this fails, and says nothing.
        self.__init__(**state["__dict__"])  # type: ignore[misc]

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex logs it."""
        return cls.__name__


class M3Embedding(_MadeOfFields, BaseEmbedding):
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

        `encoder` or `model_name`, LlamaIndex' name for it, is a bundle's folder; neither matters where `opened_with` is
        given, which `to_dict` wrote. `max_length` is tokens per text, None as in `M3Encoder.encode`. Further arguments
        are `EncoderArguments`, and those of LlamaIndex' own class.

        Raises:
            M3Error: as `M3Encoder.open`, and InputError if no bundle is named.
            SpaceMismatchError: the folder of `opened_with` holds another space by now.
        """
        how = {
            "max_length": max_length,
            "opened_with": opened_with,
            **taken_from(more, *EncoderArguments.__annotations__),
        }
        vectors = PlainVectors(encoder, model_name=model_name, **how)
        fields: dict[str, Any] = {"opened_with": vectors.opened_with, "max_length": max_length}
        name = vectors.encoder.bundle.manifest.source.name
        super().__init__(model_name=name, embed_batch_size=embed_batch_size, **fields, **more)
        self._vectors = vectors

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

    def __call__(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """Token ids and weights of S texts, as two lists of S lists.

        Raises:
            InputError: a text is not what it must be; it is named by its index.
            HeadError: the bundle has no sparse head.
        """
        rows = self.lexical(texts)
        return [ids for ids, _ in rows], [weights for _, weights in rows]


class M3NodePostprocessor(_MadeOfFields, BaseNodePostprocessor):
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

        See `M3Embedding` for how a bundle is named. `top_n` nodes are kept, None keeps all. Lengths, in tokens per pair
        and query, are those of `M3Reranker.compute_score`.

        Raises:
            M3Error: as `M3Reranker.open`; InputError if no bundle is named, or for a bad number.
            SpaceMismatchError: the folder of `opened_with` holds another model by now.
        """
        lengths: dict[str, Any] = {"max_length": max_length, "query_max_length": query_max_length}
        ranks = PlainRanks(
            reranker,
            model_name=model,
            opened_with=opened_with,
            **lengths,
            **taken_from(more, *EncoderArguments.__annotations__),
        )
        fields = {"opened_with": ranks.opened_with, "top_n": checked_most(top_n, "top_n"), **lengths}
        super().__init__(**fields, **more)
        self._ranks = ranks

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InputError("a reranker needs the query; pass query_str or query_bundle")
        texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        found = self._ranks.best(query_bundle.query_str, texts, self.top_n)
        return [NodeWithScore(node=nodes[i].node, score=score) for i, score in found]
