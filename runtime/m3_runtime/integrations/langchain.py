"""LangChain's `Embeddings`, of the dense head. Needs the extra `langchain`.

The sparse head for its stores: `langchain_qdrant` and `langchain_milvus`, beside this module.
"""

from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import ExtraNotInstalledError

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    raise ExtraNotInstalledError('this needs langchain-core; pip install "m3-runtime[langchain]"') from error


class M3Embeddings(Embeddings):
    """Dense vectors for any LangChain vector store; the `a…` methods run in LangChain's threads.

    >>> store = InMemoryVectorStore(M3Embeddings(encoder))  # doctest: +SKIP
    """

    def __init__(self, encoder: M3Encoder, *, max_length: int | None = None) -> None:
        """The encoder stays yours to close.

        Args:
            encoder: an open encoder.
            max_length: tokens per text; None as in `M3Encoder.encode`.
        """
        self._encoder, self._max_length = encoder, max_length

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """S vectors of H floats each, of length 1.

        Raises:
            InputError: a text is not what it must be; it is named by its index.
        """
        found = self._encoder.encode(texts, max_length=self._max_length).dense_vecs
        assert found is not None
        return found.tolist()

    def embed_query(self, text: str) -> list[float]:
        """One vector of H floats.

        Raises:
            InputError: the text is not what it must be.
        """
        (vector,) = self.embed_documents([text])  # M3 treats queries and passages alike
        return vector
