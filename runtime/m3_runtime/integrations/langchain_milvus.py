"""LangChain's Milvus store: its sparse interface. Needs the extra `langchain-milvus`."""

from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import ExtraNotInstalledError
from m3_runtime.integrations.lexical import lexical_rows

try:
    from langchain_milvus.utils.sparse import BaseSparseEmbedding
except ImportError as error:
    raise ExtraNotInstalledError('this needs langchain-milvus; pip install "m3-runtime[langchain-milvus]"') from error


class M3SparseEmbeddings(BaseSparseEmbedding):
    """Lexical weights for `Milvus(embedding_function=[dense, sparse])`; `langchain.M3Embeddings` is its dense side."""

    def __init__(self, encoder: M3Encoder, *, max_length: int | None = None) -> None:
        """The encoder stays yours to close.

        Args:
            encoder: an open encoder.
            max_length: tokens per text; None as in `M3Encoder.encode`.
        """
        self._encoder, self._max_length = encoder, max_length

    def embed_documents(self, texts: list[str]) -> list[dict[int, float]]:
        """S vectors: token id to weight.

        Raises:
            InputError: a text is not what it must be; it is named by its index.
            HeadError: the bundle has no sparse head.
        """
        rows = lexical_rows(self._encoder, texts, self._max_length)
        return [dict(zip(ids, weights, strict=True)) for ids, weights in rows]

    def embed_query(self, query: str) -> dict[int, float]:
        """One vector.

        Raises:
            InputError: the text is not what it must be.
            HeadError: the bundle has no sparse head.
        """
        (vector,) = self.embed_documents([query])
        return vector
