"""LangChain's `Embeddings`, of the dense head. Needs the extra `langchain`.

The sparse head for its stores: `langchain_qdrant` and `langchain_milvus`, beside this module.
"""

from m3_runtime.errors import ExtraNotInstalledError
from m3_runtime.integrations.plain_vectors import QueriesLikeDocuments

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    raise ExtraNotInstalledError('this needs langchain-core; pip install "m3-runtime[langchain]"') from error


class M3Embeddings(QueriesLikeDocuments, Embeddings):
    """Dense vectors for any LangChain vector store; the `a…` methods run in LangChain's threads.

    >>> store = InMemoryVectorStore(M3Embeddings("bge-m3-cpu"))  # doctest: +SKIP
    """

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """S vectors of H floats each, of unit length."""
        return self.dense(texts)
