"""LlamaIndex's Milvus store: its sparse interface. Needs the extra `llama-index-milvus`."""

from m3_runtime.extras import needs_extra
from m3_runtime.integrations.adapters import PlainVectors

with needs_extra("llama-index-vector-stores-milvus", "llama-index-milvus"):
    from llama_index.vector_stores.milvus.utils import BaseSparseEmbeddingFunction


class M3SparseEmbeddingFunction(PlainVectors, BaseSparseEmbeddingFunction):
    """Lexical weights for `MilvusVectorStore(enable_sparse=True, sparse_embedding_function=…)`."""

    def encode_documents(self, documents: list[str]) -> list[dict[int, float]]:
        """S vectors: token id to weight.

        Raises:
            InputError: a text is not what it must be; it is named by its index.
            HeadError: the bundle has no sparse head.
        """
        return self.lexical_by_id(documents)

    def encode_queries(self, queries: list[str]) -> list[dict[int, float]]:
        """As `encode_documents`: M3 treats queries and passages alike."""
        return self.lexical_by_id(queries, is_query=True)
