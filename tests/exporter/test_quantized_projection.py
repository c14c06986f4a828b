"""Quantized projections against exact products; and each scheme does what it is there for."""

import numpy as np
import pytest
import torch

from m3_export.plan.plan import Precision, Scheme
from m3_export.quantize.projection import (
    InputStatistics,
    fake_quantize,
    int8_columns,
    outlier_channels,
    quantize_projection,
)

WIDTH, COLUMNS, ROWS = 96, 40, 200


def rows_of(*, outlier: float = 1.0, gelu: bool = False, seed: int = 0) -> torch.Tensor:
    """Tokens (R, K) whose first two channels are `outlier` times the others."""
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(ROWS, WIDTH)).astype(np.float32))
    x[:, :2] *= outlier
    return torch.nn.functional.gelu(x) if gelu else x


def statistics_of(rows: torch.Tensor, *, gelu: bool = False) -> InputStatistics:
    return InputStatistics(rows.amin(0), rows.amax(0), rows, gelu)


def weight_of(seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(WIDTH, COLUMNS)).astype(np.float32) * 0.05)


def error(scheme: Scheme, rows: torch.Tensor, *, gelu: bool = False, group: int = 0, unseen=None) -> float:
    """Relative error of the product, on the calibration rows or others."""
    weight = weight_of()
    quantized = quantize_projection(scheme, statistics_of(rows, gelu=gelu), weight, group)
    x = rows if unseen is None else unseen
    got = fake_quantize(quantized, group, after_gelu=gelu)(x)
    return float((got - x @ weight).norm() / (x @ weight).norm())


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(Precision.STATIC),
        Scheme(Precision.STATIC, smoothing=0.5),
        Scheme(Precision.DYNAMIC),
        Scheme(Precision.DYNAMIC, smoothing=0.5),
        Scheme(Precision.DYNAMIC, float_columns=4),
    ],
    ids=str,
)
def test_every_scheme_is_close_to_the_product_on_rows_it_has_not_seen(scheme: Scheme, gelu: bool):
    assert error(scheme, rows_of(gelu=gelu), gelu=gelu, unseen=rows_of(gelu=gelu, seed=9)) < 0.02


@pytest.mark.parametrize("group", [0, 32])
def test_integers_are_integers_in_their_range(group: int):
    quantized = quantize_projection(
        Scheme(Precision.STATIC, 0.5), statistics_of(rows_of(outlier=30)), weight_of(), group
    )
    assert quantized.values.dtype == torch.int8
    assert int(quantized.values.abs().max()) <= 127
    steps = (rows_of(outlier=30) - quantized.low) / quantized.step
    assert float(steps.min()) > -0.51
    assert float(steps.max()) < 255.51


def test_the_mean_over_the_calibration_rows_is_exact():
    rows, weight = rows_of(outlier=20, gelu=True), weight_of()
    for scheme in (Scheme(Precision.STATIC, 0.5, 0.5), Scheme(Precision.DYNAMIC)):
        got = fake_quantize(quantize_projection(scheme, statistics_of(rows, gelu=True), weight, 0), 0, after_gelu=True)(
            rows
        )
        torch.testing.assert_close(got.mean(0), (rows @ weight).mean(0), atol=2e-5, rtol=1e-4)


def test_outlier_channels_spoil_one_range_for_all_and_smoothing_mends_it():
    rows = rows_of(outlier=40)
    # measured where the outlier channels do not drown the others
    quiet = rows.clone()
    quiet[:, :2] = 0
    weight = weight_of()

    def quiet_error(scheme: Scheme) -> float:
        compute = fake_quantize(quantize_projection(scheme, statistics_of(rows), weight, 0), 0, after_gelu=False)
        return float((compute(quiet) - quiet @ weight).norm() / (quiet @ weight).norm())

    assert quiet_error(Scheme(Precision.STATIC, smoothing=0.7)) < 0.3 * quiet_error(Scheme(Precision.STATIC))
    assert quiet_error(Scheme(Precision.DYNAMIC, float_columns=2)) < 1.01 * quiet_error(Scheme(Precision.DYNAMIC))


def test_float_columns_are_the_largest_and_exact():
    rows, weight = rows_of(outlier=40), weight_of()
    quantized = quantize_projection(Scheme(Precision.DYNAMIC, float_columns=2), statistics_of(rows), weight, 0)
    assert quantized.float_columns == outlier_channels(statistics_of(rows), 2) == (0, 1)
    only = torch.zeros_like(rows)
    only[:, :2] = rows[:, :2]
    got = fake_quantize(quantized, 0, after_gelu=False)(only) - quantized.shift
    torch.testing.assert_close(got, only @ weight, atol=1e-4, rtol=1e-5)
    assert error(Scheme(Precision.DYNAMIC, float_columns=2), rows) < 0.5 * error(Scheme(Precision.DYNAMIC), rows)


def test_after_gelu_clipping_cuts_the_upper_end_only():
    rows = rows_of(gelu=True)
    quantized = quantize_projection(Scheme(Precision.STATIC, clip=0.5), statistics_of(rows, gelu=True), weight_of(), 0)
    assert float(quantized.low.max()) == pytest.approx(-0.17)
    assert float((quantized.low + 255 * quantized.step).max()) < 0.6 * float(rows.max())


def test_a_constant_channel_has_no_say_in_the_range():
    rows = rows_of(gelu=True)
    rows[:, 7] = 0
    silent = error(Scheme(Precision.STATIC, smoothing=0.7), rows, gelu=True)
    assert silent < 2 * error(Scheme(Precision.STATIC, smoothing=0.7), rows_of(gelu=True), gelu=True)


def test_dynamic_ranges_are_of_each_token_or_of_its_groups():
    """A token that is a thousand times larger changes nothing for its neighbours."""
    weight = weight_of()
    for group in (0, 32):
        compute = fake_quantize(
            quantize_projection(Scheme(Precision.DYNAMIC), statistics_of(rows_of()), weight, group),
            group,
            after_gelu=False,
        )
        calm = rows_of(seed=3)[:4]
        torch.testing.assert_close(compute(torch.cat([calm, 1000 * calm]))[:4], compute(calm), atol=1e-6, rtol=0)


def test_groups_are_nearer_to_exact_than_whole_tokens():
    rows = rows_of(outlier=40)
    assert error(Scheme(Precision.DYNAMIC), rows, group=32) < error(Scheme(Precision.DYNAMIC), rows)


def test_columns_use_the_whole_range_and_zero_columns_survive():
    weight = weight_of()
    weight[:, 2] = 0
    values, scales = int8_columns(weight)
    assert values.abs().amax(dim=0).tolist() == [127, 127, 0] + [127] * (COLUMNS - 3)
    torch.testing.assert_close(values * scales, weight, atol=float(scales.max()) / 2 * 1.001, rtol=0)
