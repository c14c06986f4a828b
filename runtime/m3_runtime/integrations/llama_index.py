"""LlamaIndex: `BaseEmbedding` of the dense head, and the sparse encoder function that its stores take.

Needs the extra `llama-index`.
"""

import asyncio

from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import ExtraNotInstalledError
from m3_runtime.integrations.plain_vectors import PlainVectors

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.embeddings import BaseEmbedding
except ImportError as error:
    raise ExtraNotInstalledError('this needs llama-index-core; pip install "m3-runtime[llama-index]"') from error

_BATCH_TEXTS = 32  # LlamaIndex' own default of 10 leaves little to batch by length

SparseRows = tuple[list[list[int]], list[list[float]]]


class M3Embedding(BaseEmbedding):
    """Dense vectors for `VectorStoreIndex(embed_model=…)`; the async methods run in a thread.

    >>> index = VectorStoreIndex.from_documents(documents, embed_model=M3Embedding(encoder))  # doctest: +SKIP
    """

    _vectors: PlainVectors = PrivateAttr()

    def __init__(
        self, encoder: M3Encoder, *, max_length: int | None = None, embed_batch_size: int = _BATCH_TEXTS
    ) -> None:
        """The encoder stays yours to close.

        Args:
            encoder: an open encoder.
            max_length: tokens per text; None as in `M3Encoder.encode`.
            embed_batch_size: how many texts LlamaIndex hands over at a time.
        """
        super().__init__(model_name=encoder.bundle.manifest.source.name, embed_batch_size=embed_batch_size)
        self._vectors = PlainVectors(encoder, max_length=max_length)

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
