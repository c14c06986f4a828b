"""LangChain's Milvus store: its sparse interface. Needs the extra `langchain-milvus`."""

from m3_runtime.extras import needs_extra
from m3_runtime.integrations.adapters import PlainVectors

with needs_extra("langchain-milvus", "langchain-milvus"):
    from langchain_milvus.utils.sparse import BaseSparseEmbedding


class M3SparseEmbeddings(PlainVectors, BaseSparseEmbedding):
    """Lexical weights for `Milvus(embedding_function=[dense, sparse])`; `langchain.M3Embeddings` is its dense side."""

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """S vectors: token id to weight."""
        return self.lexical_by_id(texts)

    def embed_query(self, query: str) -> dict[int, float]:
        """One vector."""
        return self.lexical_by_id([query], is_query=True)[0]
