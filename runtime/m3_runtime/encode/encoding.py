"""What `encode` returns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.encode.sparse import SparseVectors

KEYS = ("dense_vecs", "lexical_weights", "colbert_vecs")
"""FlagEmbedding's result keys, always all three; None for a head that was not asked for."""


@dataclass(frozen=True, eq=False)
class Encoding(Mapping[str, Any]):
    """The vectors of S texts, in input order; also a mapping with FlagEmbedding's three keys.

    After `encode("one text")` (`is_single`) the results are unwrapped: one vector, one dict, one matrix.

    Attributes:
        dense_vecs: (S, H) float32, or (H,) for a single text.
        sparse: the lexical weights as arrays; always S rows, also for a single text.
        colbert_vecs: S arrays (L-1, C) that own their memory, or one for a single text; float32 or float16.
        token_counts: (S,) int64, tokens that were encoded, both special tokens included.
        truncated: how many texts were cut to max_length.
        is_single: the input was one text, not a list.
    """

    dense_vecs: NDArray[np.float32] | None
    sparse: SparseVectors | None
    colbert_vecs: list[NDArray[Any]] | NDArray[Any] | None
    token_counts: NDArray[np.int64]
    truncated: int
    is_single: bool

    @cached_property
    def lexical_weights(self) -> list[dict[str, float]] | dict[str, float] | None:
        """Per text: decimal token id to weight, ids in order of first occurrence; built when first read."""
        if self.sparse is None:
            return None
        return self.sparse.lexical_weights(0) if self.is_single else list(self.sparse)

    def single(self) -> "Encoding":
        """The encoding of the only text, unwrapped."""
        assert isinstance(self.colbert_vecs, list | None)
        return replace(
            self,
            dense_vecs=None if self.dense_vecs is None else self.dense_vecs[0],
            colbert_vecs=None if self.colbert_vecs is None else self.colbert_vecs[0],
            is_single=True,
        )

    def __getitem__(self, key: str) -> Any:
        if key not in KEYS:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(KEYS)

    def __len__(self) -> int:
        return len(KEYS)

    def __eq__(self, other: object) -> bool:
        return self is other  # arrays have no single truth value

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        heads = [key for key in KEYS if (self.sparse if key == KEYS[1] else getattr(self, key)) is not None]
        return f"Encoding(texts={len(self.token_counts)}, heads={heads}, truncated={self.truncated})"
