"""LangChain's Qdrant store: its sparse interface. Needs the extra `langchain-qdrant`."""

from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import ExtraNotInstalledError
from m3_runtime.integrations.lexical import lexical_rows

try:
    from langchain_qdrant import SparseEmbeddings, SparseVector
except ImportError as error:
    raise ExtraNotInstalledError('this needs langchain-qdrant; pip install "m3-runtime[langchain-qdrant]"') from error


class M3SparseEmbeddings(SparseEmbeddings):
    """Lexical weights for `QdrantVectorStore(sparse_embedding=…)`; `langchain.M3Embeddings` is its dense side."""

    def __init__(self, encoder: M3Encoder, *, max_length: int | None = None) -> None:
        """The encoder stays yours to close.

        Args:
            encoder: an open encoder.
            max_length: tokens per text; None as in `M3Encoder.encode`.
        """
        self._encoder, self._max_length = encoder, max_length

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """S vectors: token ids and weights.

        Raises:
            InputError: a text is not what it must be; it is named by its index.
            HeadError: the bundle has no sparse head.
        """
        rows = lexical_rows(self._encoder, texts, self._max_length)
        return [SparseVector(indices=ids, values=weights) for ids, weights in rows]

    def embed_query(self, text: str) -> SparseVector:
        """One vector.

        Raises:
            InputError: the text is not what it must be.
            HeadError: the bundle has no sparse head.
        """
        (vector,) = self.embed_documents([text])
        return vector
