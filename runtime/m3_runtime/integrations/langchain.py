"""LangChain's `Embeddings`, of the dense head, and a document compressor, of a reranker. Needs the extra `langchain`.

The sparse head for its stores: `langchain_qdrant` and `langchain_milvus`, beside this module.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m3_runtime.errors import ExtraNotInstalledError
from m3_runtime.integrations.plain_ranks import PlainRanks, checked_most
from m3_runtime.integrations.plain_vectors import QueriesLikeDocuments
from m3_runtime.reranker import M3Reranker

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from pydantic import PrivateAttr
except ImportError as error:
    raise ExtraNotInstalledError('this needs langchain-core; pip install "m3-runtime[langchain]"') from error


class M3Embeddings(QueriesLikeDocuments, Embeddings):
    """Dense vectors for any LangChain vector store; the `a…` methods run in LangChain's threads.

    >>> store = InMemoryVectorStore(M3Embeddings("bge-m3-cpu"))  # doctest: +SKIP
    """

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """S vectors of H floats each, of unit length."""
        return self.dense(texts)


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
        """Take an open reranker, or open a bundle.

        Args:
            reranker: an open reranker, or a bundle's folder.
            model_name: a bundle's folder, by LangChain's name for it.
            top_n: how many documents are kept; None keeps all.
            **more: further arguments of `PlainRanks`.

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
