"""LangChain's Qdrant store: its sparse interface. Needs the extra `langchain-qdrant`."""

from m3_runtime.errors import ExtraNotInstalledError
from m3_runtime.integrations.plain_vectors import QueriesLikeDocuments

try:
    from langchain_qdrant import SparseEmbeddings, SparseVector
except ImportError as error:
    raise ExtraNotInstalledError('this needs langchain-qdrant; pip install "m3-runtime[langchain-qdrant]"') from error


class M3SparseEmbeddings(QueriesLikeDocuments, SparseEmbeddings):
    """Lexical weights for `QdrantVectorStore(sparse_embedding=…)`; `langchain.M3Embeddings` is its dense side."""

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """S vectors: token ids and weights."""
        return [SparseVector(indices=ids, values=weights) for ids, weights in self.lexical(texts)]
