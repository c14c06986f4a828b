"""LangChain's Milvus store: its sparse interface. Needs the extra `langchain-milvus`."""

from m3_runtime.errors import ExtraNotInstalledError
from m3_runtime.integrations.plain_vectors import QueriesLikeDocuments

try:
    from langchain_milvus.utils.sparse import BaseSparseEmbedding
except ImportError as error:
    raise ExtraNotInstalledError('this needs langchain-milvus; pip install "m3-runtime[langchain-milvus]"') from error


class M3SparseEmbeddings(QueriesLikeDocuments, BaseSparseEmbedding):
    """Lexical weights for `Milvus(embedding_function=[dense, sparse])`; `langchain.M3Embeddings` is its dense side."""

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """S vectors: token id to weight."""
        return self.lexical_by_id(texts)

    def embed_query(self, query: str) -> dict[int, float]:
        """One vector."""
        (vector,) = self.lexical_by_id([query], is_query=True)
        return vector
