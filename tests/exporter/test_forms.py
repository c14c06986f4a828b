"""Forms: what INT8 makes of a projection, against exact products; and each choice does what it is there for."""

import numpy as np
import pytest
import torch

from m3_export.plan.forms import Heard, form_of, int8_columns, loudest_channels, rendered
from m3_export.plan.plan import Choice, Precision

WIDTH, COLUMNS, ROWS = 96, 40, 200


def rows_of(*, loud: float = 1.0, gelu: bool = False, seed: int = 0) -> torch.Tensor:
    """Tokens (R, K) whose first two channels are `loud` times the others."""
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(ROWS, WIDTH)).astype(np.float32))
    x[:, :2] *= loud
    return torch.nn.functional.gelu(x) if gelu else x


def heard_in(rows: torch.Tensor, *, gelu: bool = False) -> Heard:
    return Heard(rows.amin(0), rows.amax(0), rows, gelu)


def weight_of(seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(WIDTH, COLUMNS)).astype(np.float32) * 0.05)


def error(choice: Choice, rows: torch.Tensor, *, gelu: bool = False, group: int = 0, unseen=None) -> float:
    """Relative error of the product, on the heard rows or others."""
    weight = weight_of()
    form = form_of(choice, heard_in(rows, gelu=gelu), weight, group)
    x = rows if unseen is None else unseen
    got = rendered(form, group, after_gelu=gelu)(x)
    return float((got - x @ weight).norm() / (x @ weight).norm())


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    "choice",
    [
        Choice(Precision.STATIC),
        Choice(Precision.STATIC, smoothing=0.5),
        Choice(Precision.DYNAMIC),
        Choice(Precision.DYNAMIC, smoothing=0.5),
        Choice(Precision.DYNAMIC, columns_apart=4),
    ],
    ids=str,
)
def test_every_form_is_close_to_the_product_on_rows_it_has_not_heard(choice: Choice, gelu: bool):
    assert error(choice, rows_of(gelu=gelu), gelu=gelu, unseen=rows_of(gelu=gelu, seed=9)) < 0.02


@pytest.mark.parametrize("group", [0, 32])
def test_integers_are_integers_in_their_range(group: int):
    form = form_of(Choice(Precision.STATIC, 0.5), heard_in(rows_of(loud=30)), weight_of(), group)
    assert form.values.dtype == torch.int8
    assert int(form.values.abs().max()) <= 127
    steps = (rows_of(loud=30) - form.low) / form.step
    assert float(steps.min()) > -0.51
    assert float(steps.max()) < 255.51


def test_the_mean_over_the_heard_rows_is_exact():
    rows, weight = rows_of(loud=20, gelu=True), weight_of()
    for choice in (Choice(Precision.STATIC, 0.5, 0.5), Choice(Precision.DYNAMIC)):
        got = rendered(form_of(choice, heard_in(rows, gelu=True), weight, 0), 0, after_gelu=True)(rows)
        torch.testing.assert_close(got.mean(0), (rows @ weight).mean(0), atol=2e-5, rtol=1e-4)


def test_loud_channels_spoil_one_range_for_all_and_smoothing_mends_it():
    rows = rows_of(loud=40)
    # measured where the loud channels do not drown the others
    quiet = rows.clone()
    quiet[:, :2] = 0
    weight = weight_of()

    def quiet_error(choice: Choice) -> float:
        compute = rendered(form_of(choice, heard_in(rows), weight, 0), 0, after_gelu=False)
        return float((compute(quiet) - quiet @ weight).norm() / (quiet @ weight).norm())

    assert quiet_error(Choice(Precision.STATIC, smoothing=0.7)) < 0.3 * quiet_error(Choice(Precision.STATIC))
    assert quiet_error(Choice(Precision.DYNAMIC, columns_apart=2)) < 1.01 * quiet_error(Choice(Precision.DYNAMIC))


def test_channels_apart_are_the_loudest_and_exact():
    rows, weight = rows_of(loud=40), weight_of()
    form = form_of(Choice(Precision.DYNAMIC, columns_apart=2), heard_in(rows), weight, 0)
    assert form.apart == loudest_channels(heard_in(rows), 2) == (0, 1)
    only = torch.zeros_like(rows)
    only[:, :2] = rows[:, :2]
    got = rendered(form, 0, after_gelu=False)(only) - form.shift
    torch.testing.assert_close(got, only @ weight, atol=1e-4, rtol=1e-5)
    assert error(Choice(Precision.DYNAMIC, columns_apart=2), rows) < 0.5 * error(Choice(Precision.DYNAMIC), rows)


def test_after_gelu_clipping_cuts_the_upper_end_only():
    rows = rows_of(gelu=True)
    form = form_of(Choice(Precision.STATIC, clip=0.5), heard_in(rows, gelu=True), weight_of(), 0)
    assert float(form.low.max()) == pytest.approx(-0.17)
    assert float((form.low + 255 * form.step).max()) < 0.6 * float(rows.max())


def test_a_silent_channel_has_no_say_in_the_range():
    rows = rows_of(gelu=True)
    rows[:, 7] = 0
    silent = error(Choice(Precision.STATIC, smoothing=0.7), rows, gelu=True)
    assert silent < 2 * error(Choice(Precision.STATIC, smoothing=0.7), rows_of(gelu=True), gelu=True)


def test_dynamic_ranges_are_of_each_token_or_of_its_groups():
    """A token that is a thousand times louder changes nothing for its neighbours."""
    weight = weight_of()
    for group in (0, 32):
        compute = rendered(
            form_of(Choice(Precision.DYNAMIC), heard_in(rows_of()), weight, group), group, after_gelu=False
        )
        calm = rows_of(seed=3)[:4]
        torch.testing.assert_close(compute(torch.cat([calm, 1000 * calm]))[:4], compute(calm), atol=1e-6, rtol=0)


def test_groups_are_nearer_to_exact_than_whole_tokens():
    rows = rows_of(loud=40)
    assert error(Choice(Precision.DYNAMIC), rows, group=32) < error(Choice(Precision.DYNAMIC), rows)


def test_columns_use_the_whole_range_and_zero_columns_survive():
    weight = weight_of()
    weight[:, 2] = 0
    values, scales = int8_columns(weight)
    assert values.abs().amax(dim=0).tolist() == [127, 127, 0] + [127] * (COLUMNS - 3)
    torch.testing.assert_close(values * scales, weight, atol=float(scales.max()) / 2 * 1.001, rtol=0)
