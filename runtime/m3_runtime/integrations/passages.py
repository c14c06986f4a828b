"""What goes into a database, and how it is searched."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from m3_runtime.bundle.manifest import Head
from m3_runtime.bundle.space import check_space
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError


class Mode(StrEnum):
    """How to search.

    HYBRID fuses the dense and the sparse ranking by their ranks (RRF); RERANKED orders what HYBRID finds by ColBERT.
    COLBERT alone compares the query with every passage: exact, and slow in a large collection.
    """

    DENSE = "dense"
    SPARSE = "sparse"
    COLBERT = "colbert"
    HYBRID = "hybrid"
    RERANKED = "reranked"

    @property
    def heads(self) -> frozenset[Head]:
        """Heads of the query that it takes."""
        several = {Mode.HYBRID: frozenset((Head.DENSE, Head.SPARSE)), Mode.RERANKED: frozenset(Head)}
        return several.get(self) or frozenset((Head(self.value),))


@dataclass(frozen=True)
class Passage:
    """A text to keep; `payload` lies beside it. Qdrant's ids are integers of 0 or more and UUIDs, Milvus' are texts."""

    id: int | str
    text: str
    payload: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """See that it is a text, so that the error names the passage.

        Raises:
            InputError: it is none.
        """
        if not isinstance(self.text, str):
            raise InputError(f"passage {self.id!r}: text must be a str, got {type(self.text).__name__}")


def checked_mode(mode: Mode | str) -> Mode:
    """The mode of that name.

    >>> checked_mode("hybrid")
    <Mode.HYBRID: 'hybrid'>

    Raises:
        InputError: there is none.
    """
    try:
        return Mode(mode)
    except ValueError as error:
        raise InputError(f"mode must be one of {', '.join(Mode)}, got {mode!r}") from error


def check_collection(name: str, notes: Mapping[str, Any], keys: tuple[str, str], encoder: M3Encoder) -> None:
    """See that a collection was filled from the encoder's vector space.

    Args:
        name: of the collection.
        notes: what the database keeps beside it.
        keys: under which keys `create` noted the space and the variant.
        encoder: whose vectors are to be added, or to search.

    Raises:
        InputError: the collection does not say which vector space it holds.
        SpaceMismatchError: it was filled from another vector space.

    Warns:
        VariantDriftWarning: the same space, computed by another variant.
    """
    space_key, variant_key = keys
    if space_key not in notes or variant_key not in notes:
        raise InputError(
            f"collection {name!r} does not say which vector space it holds; expected {space_key} and {variant_key} "
            "in its metadata, as `create` writes them"
        )
    check_space(notes[space_key], notes[variant_key], encoder)
