"""Vectors as plain lists, which is what frameworks take."""

from m3_runtime.encoder import M3Encoder


class PlainVectors:
    """An encoder whose vectors are lists of Python numbers."""

    def __init__(self, encoder: M3Encoder, *, max_length: int | None = None) -> None:
        """The encoder stays yours to close.

        Args:
            encoder: an open encoder.
            max_length: tokens per text; None as in `M3Encoder.encode`.
        """
        self._encoder, self._max_length = encoder, max_length

    def dense(self, texts: list[str]) -> list[list[float]]:
        """S vectors of H floats each, of unit length.

        Raises:
            InputError: a text is not what it must be; it is named by its index.
        """
        found = self._encoder.encode(texts, max_length=self._max_length).dense_vecs
        assert found is not None
        return found.tolist()

    def lexical(self, texts: list[str]) -> list[tuple[list[int], list[float]]]:
        """Token ids and weights of each of S texts.

        Raises:
            InputError: a text is not what it must be; it is named by its index.
            HeadError: the bundle has no sparse head.
        """
        found = self._encoder.encode(texts, max_length=self._max_length, return_dense=False, return_sparse=True).sparse
        assert found is not None
        return [(ids.tolist(), weights.tolist()) for ids, weights in found.rows()]
