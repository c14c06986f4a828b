import warnings

import pytest

from m3_runtime import SpaceMismatchError, VariantDriftWarning, check_space


def test_the_same_space_and_variant(encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_space(encoder.space_id, encoder.variant.name, encoder)


def test_another_space_is_an_error(encoder):
    with pytest.raises(SpaceMismatchError, match="vectors of space other"):
        check_space("other", encoder.variant.name, encoder)


def test_another_variant_is_a_warning_with_figures(encoder):
    dense = encoder.bundle.manifest.parity["onnx-int8"].dense
    assert dense is not None
    cosine = dense.cosine_mean
    with pytest.warns(VariantDriftWarning, match=f"filled by variant 'onnx-int8'.*{cosine:.5f}"):
        check_space(encoder.space_id, "onnx-int8", encoder)


def test_a_variant_that_is_gone_is_a_warning(encoder):
    with pytest.warns(VariantDriftWarning, match="unknown"):
        check_space(encoder.space_id, "onnx-int3", encoder)
