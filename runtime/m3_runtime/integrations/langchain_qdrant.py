"""LangChain's Qdrant store: its sparse interface. Needs the extra `langchain-qdrant`."""

from m3_runtime.extras import needs_extra
from m3_runtime.integrations.adapters import PlainVectors

with needs_extra("langchain-qdrant", "langchain-qdrant"):
    from langchain_qdrant import SparseEmbeddings, SparseVector


class M3SparseEmbeddings(PlainVectors, SparseEmbeddings):
    """Lexical weights for `QdrantVectorStore(sparse_embedding=…)`; `langchain.M3Embeddings` is its dense side."""

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """S vectors: token ids and weights."""
        return [SparseVector(indices=ids, values=weights) for ids, weights in self.lexical(texts)]

    def embed_query(self, text: str) -> SparseVector:
        """One vector: M3 treats queries and passages alike."""
        return self.embed_documents([text])[0]
