"""Whether an index and an encoder share a vector space."""

import warnings
from typing import Protocol

from m3_runtime.bundle.manifest import Variant
from m3_runtime.bundle.reader import Bundle
from m3_runtime.errors import SpaceMismatchError


class VariantDriftWarning(UserWarning):
    """An index was filled by another variant of the same space: scores move by a measured drift."""


class InSpace(Protocol):
    """What makes vectors of a space: an `M3Encoder`."""

    @property
    def bundle(self) -> Bundle: ...  # noqa: D102
    @property
    def variant(self) -> Variant: ...  # noqa: D102
    @property
    def space_id(self) -> str: ...  # noqa: D102


def check_space(index_space_id: str, index_variant: str, encoder: InSpace) -> None:
    """Compare what an index recorded when it was filled with the encoder that will query it.

    Args:
        index_space_id: `encoder.space_id` at the time of indexing.
        index_variant: `encoder.variant.name` at the time of indexing.
        encoder: what will encode the queries.

    Raises:
        SpaceMismatchError: another space_id.

    Warns:
        VariantDriftWarning: the same space, computed by another variant.
    """
    if index_space_id != encoder.space_id:
        raise SpaceMismatchError(
            f"the index holds vectors of space {index_space_id}, the encoder makes vectors of space "
            f"{encoder.space_id}; open the bundle that the index was filled with, or fill the index again"
        )
    variant = encoder.variant.name
    if index_variant != variant:
        warnings.warn(
            f"the index was filled by variant {index_variant!r}, queries are encoded by {variant!r}; "
            f"dense cosine to the reference: {_drift(encoder, index_variant)} and {_drift(encoder, variant)}",
            VariantDriftWarning,
            stacklevel=2,
        )


def _drift(encoder: InSpace, variant: str) -> str:
    parity = encoder.bundle.manifest.parity.get(variant)
    if parity is None or parity.dense is None:
        return "unknown"
    return f"{parity.dense.cosine_mean:.5f} (lowest {parity.dense.cosine_min:.5f})"
