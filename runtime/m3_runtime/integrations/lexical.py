"""Lexical weights as plain lists, which is what frameworks take."""

from collections.abc import Sequence

from m3_runtime.encoder import M3Encoder

LexicalRow = tuple[list[int], list[float]]


def lexical_rows(encoder: M3Encoder, texts: Sequence[str], max_length: int | None) -> list[LexicalRow]:
    """Token ids and weights of each of S texts.

    Raises:
        InputError: a text is not what it must be; it is named by its index.
        HeadError: the bundle has no sparse head.
    """
    found = encoder.encode(texts, max_length=max_length, return_dense=False, return_sparse=True).sparse
    assert found is not None
    return [(ids.tolist(), weights.tolist()) for ids, weights in found.rows()]
