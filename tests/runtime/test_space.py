import warnings
from dataclasses import replace

import pytest

from m3_runtime import (
    BundleDamagedError,
    InputError,
    SpaceMismatchError,
    VariantDriftWarning,
    VocabularyDriftWarning,
    check_space,
)
from m3_runtime.bundle.space import colbert_space_of


def test_the_same_space_and_variant(encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_space(encoder.space_id, encoder.variant.name, encoder)


def test_another_space_is_an_error(encoder):
    with pytest.raises(SpaceMismatchError, match="vectors of space other"):
        check_space("other", encoder.variant.name, encoder)


def test_reduced_colbert_rows_live_in_a_space_of_their_own(encoder, tmp_path):
    named = encoder.colbert_space_id(4)
    assert named == f"{encoder.space_id}/4-{encoder.bundle.colbert_pca.sha256[:8]}"
    assert encoder.colbert_space_id(None) == encoder.space_id
    name = encoder.variant.name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_space(named, name, encoder, colbert_dim=4)
    other = replace(encoder.bundle.colbert_pca, sha256="0" * 64)
    files = (*(entry for entry in encoder.bundle.manifest.files if entry.path != other.path), other)
    with_others = replace(encoder.bundle, manifest=replace(encoder.bundle.manifest, files=files))
    for index, dim in ((named, None), (named, 5), (encoder.space_id, 4), (colbert_space_of(with_others, 4), 4)):
        with pytest.raises(SpaceMismatchError) as caught:
            check_space(index, name, encoder, colbert_dim=dim)
        assert f"of space {index}, " in str(caught.value)
        assert f"of space {encoder.colbert_space_id(dim)};" in str(caught.value)
    with pytest.raises(BundleDamagedError, match=r"colbert_pca.npy.* is damaged"):
        with_others.colbert_axes(4)
    for dim in (0, 10**6, True):
        with pytest.raises(InputError, match="colbert_dim must be a number from 1 to"):
            encoder.colbert_space_id(dim)


def test_fewer_pieces_and_fewer_dimensions_together(encoder):
    index = encoder.colbert_space_id(4).replace("/", "+7091a181/")
    with pytest.warns(VocabularyDriftWarning, match="another choice of pieces"):
        check_space(index, encoder.variant.name, encoder, colbert_dim=4)


def test_another_variant_is_a_warning_with_figures(encoder):
    dense = encoder.bundle.manifest.parity["onnx-int8"].dense
    assert dense is not None
    cosine = dense.cosine_mean
    with pytest.warns(VariantDriftWarning, match=f"filled by variant 'onnx-int8'.*{cosine:.5f}"):
        check_space(encoder.space_id, "onnx-int8", encoder)


def test_a_variant_that_is_gone_is_a_warning(encoder):
    with pytest.warns(VariantDriftWarning, match="unknown"):
        check_space(encoder.space_id, "onnx-int3", encoder)
