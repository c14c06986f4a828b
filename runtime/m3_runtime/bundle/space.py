"""Whether an index and an encoder share a vector space."""

import hashlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from m3_runtime.bundle.reader import Bundle
from m3_runtime.errors import SpaceMismatchError

if TYPE_CHECKING:
    from m3_runtime.opened_model import OpenedModel


class VariantDriftWarning(UserWarning):
    """An index was filled by another variant of the same space: scores move by a measured drift."""


class VocabularyDriftWarning(UserWarning):
    """An index was filled with another choice of pieces of the same model: some texts' vectors are not the same."""


def space_of_fewer_pieces(full_space_id: str, kept_ids: Sequence[int]) -> str:
    """The space of a bundle in which only these ids have embedding rows: the full model's, "+", and which they are.

    >>> space_of_fewer_pieces("m3-0f", [0, 1, 2, 3, 7])
    'm3-0f+7091a181'
    """
    digest = hashlib.sha256(" ".join(map(str, kept_ids)).encode()).hexdigest()
    return f"{full_space_id}+{digest[:8]}"


def full_space_of(space_id: str) -> str:
    """The space of the model with all its pieces. Texts whose pieces two bundles both have get the same vectors.

    >>> full_space_of("m3-0f+7091a181"), full_space_of("m3-0f+7091a181/64-1f2e3d4c"), full_space_of("m3-0f")
    ('m3-0f', 'm3-0f/64-1f2e3d4c', 'm3-0f')
    """
    own, slash, axes = space_id.partition("/")
    return own.partition("+")[0] + slash + axes


def space_on_axes(space_id: str, dim: int, axes_sha256: str) -> str:
    """The space of ColBERT rows on the first `dim` of a bundle's principal axes, whose file has this digest.

    >>> space_on_axes("m3-0f", 64, "1f2e3d4c5b")
    'm3-0f/64-1f2e3d4c'
    """
    return f"{space_id}/{dim}-{axes_sha256[:8]}"


def colbert_space_of(bundle: Bundle, dim: int | None) -> str:
    """The space of ColBERT rows of so many dimensions: the bundle's own for None, which keeps rows as they are.

    Raises:
        HeadError: the bundle has no ColBERT head.
        InputError: `dim` is no number from 1 to the head's width, or the bundle has no principal axes.
    """
    if dim is None:
        return bundle.manifest.space_id
    dim = bundle.checked_colbert_dim(dim)
    assert bundle.colbert_pca is not None
    return space_on_axes(bundle.manifest.space_id, dim, bundle.colbert_pca.sha256)


def check_space(
    index_space_id: str, index_variant: str, encoder: "OpenedModel", colbert_dim: int | None = None
) -> None:
    """Compare what an index recorded when it was filled with the encoder that will query it.

    Args:
        index_space_id: `encoder.space_id` at the time of indexing; of ColBERT rows `encoder.colbert_space_id`.
        index_variant: `encoder.variant.name` at the time of indexing.
        encoder: what will encode the queries.
        colbert_dim: with which queries are encoded.

    Raises:
        SpaceMismatchError: the space of another model, or ColBERT rows on other axes or of other dimensions.
        M3Error: as `colbert_space_of`.

    Warns:
        VocabularyDriftWarning: the same model with other pieces.
        VariantDriftWarning: the same space, computed by another variant.
    """
    own = colbert_space_of(encoder.bundle, colbert_dim)
    if full_space_of(index_space_id) != full_space_of(own):
        raise SpaceMismatchError(
            f"the index holds vectors of space {index_space_id}, the encoder makes vectors of space {own}; open the "
            "bundle that the index was filled with, with the same dimensions, or fill the index again"
        )
    if index_space_id != own:
        warnings.warn(
            f"the index was filled in {index_space_id}, queries are encoded in {own}: the same model with another "
            "choice of pieces. Texts whose pieces both have got the same vectors, others did not: "
            "`out_of_vocabulary` counts them",
            VocabularyDriftWarning,
            stacklevel=2,
        )
    variant = encoder.variant.name
    if index_variant != variant:
        warnings.warn(
            f"the index was filled by variant {index_variant!r}, queries are encoded by {variant!r}; "
            f"dense cosine to the reference: {_drift(encoder, index_variant)} and {_drift(encoder, variant)}",
            VariantDriftWarning,
            stacklevel=2,
        )


def _drift(encoder: "OpenedModel", variant: str) -> str:
    parity = encoder.bundle.manifest.parity.get(variant)
    if parity is None or parity.dense is None:
        return "unknown"
    return f"{parity.dense.cosine_mean:.5f} (lowest {parity.dense.cosine_min:.5f})"
