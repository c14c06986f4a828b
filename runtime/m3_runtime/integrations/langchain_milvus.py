"""LangChain's Milvus store: its sparse interface. Needs the extra `langchain-milvus`."""

from m3_runtime.errors import ExtraNotInstalledError
from m3_runtime.integrations.plain_vectors import PlainVectors

try:
    from langchain_milvus.utils.sparse import BaseSparseEmbedding
except ImportError as error:
    raise ExtraNotInstalledError('this needs langchain-milvus; pip install "m3-runtime[langchain-milvus]"') from error


class M3SparseEmbeddings(PlainVectors, BaseSparseEmbedding):
    """Lexical weights for `Milvus(embedding_function=[dense, sparse])`; `langchain.M3Embeddings` is its dense side."""

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """S vectors: token id to weight.

        Raises:
            InputError: a text is not what it must be; it is named by its index.
            HeadError: the bundle has no sparse head.
        """
        return self.lexical_by_id(texts)

    def embed_query(self, query: str) -> dict[int, float]:
        """One vector.

        Raises:
            InputError: the text is not what it must be.
            HeadError: the bundle has no sparse head.
        """
        (vector,) = self.embed_documents([query])
        return vector
