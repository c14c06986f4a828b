"""LangChain's `Embeddings`, of the dense head, and a document compressor, of a reranker. Needs the extra `langchain`.

The sparse head for its stores: `langchain_qdrant` and `langchain_milvus`, next to this module.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3_runtime.extras import needs_extra
from m3_runtime.integrations.adapters import PlainRanks, PlainVectors, checked_most
from m3_runtime.reranker import M3Reranker

with needs_extra("langchain-core", "langchain"):
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from pydantic import PrivateAttr


class M3Embeddings(PlainVectors, Embeddings):
    """Dense vectors for any LangChain vector store; the `a…` methods run in LangChain's threads.

    >>> store = InMemoryVectorStore(M3Embeddings("bge-m3-cpu"))  # doctest: +SKIP
    """

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """S vectors of H floats each, of unit length."""
        return self.dense(texts)

    def embed_query(self, text: str) -> list[float]:
        """One vector: M3 treats queries and passages alike."""
        return self.dense([text])[0]


class M3DocumentCompressor(BaseDocumentCompressor):
    """The best of the documents that a retriever has found, for `ContextualCompressionRetriever(base_compressor=…)`.

    The documents are copies; `metadata["relevance_score"]` is from 0 to 1. `acompress_documents` runs in LangChain's
    threads.

    >>> compressor = M3DocumentCompressor("bge-reranker-cpu", top_n=5)  # doctest: +SKIP
    >>> compressor.compress_documents(found, "How do bees talk?")  # doctest: +SKIP
    """

    top_n: int | None
    _ranks: PlainRanks = PrivateAttr()

    def __init__(
        self,
        reranker: M3Reranker | str | Path | None = None,
        *,
        model_name: str | Path | None = None,
        top_n: int | None = 3,
        **more: Any,
    ) -> None:
        """Take an open reranker, or open a bundle; `top_n` documents are kept, None keeps all.

        Other arguments are those of `PlainRanks`.

        Raises:
            M3Error: as `PlainRanks`, and InputError for a `top_n` below 1.
        """
        fields: dict[str, Any] = {"top_n": checked_most(top_n, "top_n")}
        super().__init__(**fields)
        self._ranks = PlainRanks(reranker, model_name=model_name, **more)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Copies of the best documents, the best first.

        Raises:
            InputError: the query or a document's text is not what it must be, or empty; it is named by its index.
        """
        found = self._ranks.best(query, [document.page_content for document in documents], self.top_n)
        return [
            documents[i].model_copy(update={"metadata": {**documents[i].metadata, "relevance_score": score}})
            for i, score in found
        ]
