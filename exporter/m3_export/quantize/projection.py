"""A quantized projection: the integers that engines multiply, and the same in PyTorch floats.

The writers of both engines and the planner's simulation read the same values, so that what is simulated is what is
written. Letters: K inputs and N outputs of the projection, R rows (tokens).

    static    q = round((x - low) / step), 0…255            y = q Ŵ + shift            low, step: (K,), calibrated
    dynamic   z = x / smoothing;  q = round(z / range(z))   y = q·range(z) Ŵ + shift   range: of a token or its groups
    outlier columns in float (LLM.int8) are left out of both and multiplied separately

SmoothQuant (Xiao et al. 2022) is a division of channels that the weight's rows make up for: in a static scheme it is
part of the range of each channel and costs nothing. So is the zero point: it is part of the shift, which the
projection's bias takes up. The shift also makes up for the mean error over the calibration rows (Nagel et al. 2019),
whatever its cause.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from m3_export.plan.plan import Precision, Scheme

LEVELS = 255  # steps of an unsigned byte
LARGEST = 127  # of a signed one; -128 is not used
TINY = 1e-12
GELU_MINIMUM = 0.17  # |min of x Φ(x)| = 0.16997


@dataclass(frozen=True)
class InputStatistics:
    """What calibration measured at the input of a projection, centred as the INT8 graph centres it."""

    lowest: torch.Tensor  # (K,) of each channel, over all tokens
    highest: torch.Tensor  # (K,) of each channel
    rows: torch.Tensor  # (R, K) some of the tokens
    after_gelu: bool  # the input is what GELU gives: never below -0.17


@dataclass(frozen=True)
class QuantizedProjection:
    """One projection as it is multiplied; the product x Ŵ + shift is without the projection's bias."""

    precision: Precision  # static or dynamic
    values: torch.Tensor  # (K, N) int8, the weight; zero rows for columns in float
    scales: torch.Tensor  # (N,) of each column: Ŵ = values · scales
    shift: torch.Tensor  # (N,) to be added to the bias
    low: torch.Tensor  # (K,) static: the value that becomes 0; the channel's zero point
    step: torch.Tensor  # (K,) static: what one of the 255 steps is worth in each channel
    smoothing: torch.Tensor | None  # (K,) dynamic: what channels are divided by; None where that is 1 everywhere
    float_columns: tuple[int, ...]  # channels multiplied in float, ascending
    float_weight: torch.Tensor  # (A, N) float32, their rows of the weight


def quantize_projection(
    scheme: Scheme, inputs: InputStatistics, weight: torch.Tensor, group: int
) -> QuantizedProjection:
    """Quantize a projection whose scheme is static or dynamic.

    Args:
        scheme: not float.
        inputs: statistics of its input.
        weight: (K, N) float32.
        group: channels that share a dynamic range; 0 is all of a token.
    """
    columns = outlier_channels(inputs, scheme.float_columns)
    rest = weight.clone() if columns else weight
    rest[list(columns)] = 0
    divisor = smoothing_of(inputs, rest, scheme.smoothing)
    if scheme.precision is Precision.STATIC:
        low, step = static_ranges(inputs, divisor, scheme.clip, columns)
        values, scales = int8_columns(rest * step[:, None])
        divisor = None
    else:
        low = step = torch.zeros(0)
        values, scales = int8_columns(rest if divisor is None else rest * divisor[:, None])
    rough = QuantizedProjection(
        precision=scheme.precision,
        values=values,
        scales=scales,
        shift=torch.zeros(weight.shape[1]),
        low=low,
        step=step,
        smoothing=divisor,
        float_columns=columns,
        float_weight=weight[list(columns)],
    )
    exact = (inputs.rows.mean(0, dtype=torch.float64) @ weight.double()).float()
    return replace(rough, shift=exact - fake_quantize(rough, group, after_gelu=inputs.after_gelu)(inputs.rows).mean(0))


def fake_quantize(
    quantized: QuantizedProjection, group: int, *, after_gelu: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a quantized projection computes: a function (…, K) → (…, N) in floats that hold integers, so it is exact."""
    weight, columns = quantized.values.float() * quantized.scales, list(quantized.float_columns)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        thin = x[..., columns] @ quantized.float_weight if columns else 0.0
        if columns:
            x = x.clone()
            x[..., columns] = 0
        if quantized.precision is Precision.STATIC:
            rounded = torch.clamp(torch.round((x - quantized.low) / quantized.step), 0, LEVELS)
        else:
            smooth = x if quantized.smoothing is None else x / quantized.smoothing
            rounded = dynamic_rounding(smooth, group, after_gelu=after_gelu and quantized.smoothing is None)
        return rounded @ weight + quantized.shift + thin

    return multiply


def dynamic_rounding(x: torch.Tensor, group: int, *, after_gelu: bool) -> torch.Tensor:
    """X (…, K) as dynamic ranges round it: int8 per group on OpenVINO, uint8 per token (group 0) on ONNX Runtime."""
    if group:
        grouped = x.unflatten(-1, (-1, group)) if x.shape[-1] % group == 0 else x[..., None, :]
        scale = (grouped.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=TINY)
        return (torch.round(grouped / scale).clamp(-LARGEST - 1, LARGEST) * scale).reshape(x.shape)
    if after_gelu:  # zero point 16: 239 of 255 steps are positive
        scale = (x.amax(-1, keepdim=True) / 239).clamp(min=GELU_MINIMUM / 16)
        return torch.round(x / scale).clamp(-16, 239) * scale
    scale = (x.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=TINY)
    return torch.round(x / scale).clamp(-128, LARGEST) * scale


def smoothing_of(inputs: InputStatistics, weight: torch.Tensor, strength: float) -> torch.Tensor | None:
    """SmoothQuant's divisor of each channel, (K,), geometric mean 1; None for strength 0."""
    if strength == 0:
        return None
    # every range after GELU reaches down to its minimum: a neuron that was hardly active must not get a tiny divisor,
    # or that range, divided by it, would be the longest of all
    least = GELU_MINIMUM if inputs.after_gelu else 1e-5
    largest = torch.maximum(inputs.highest.abs(), inputs.lowest.abs()).clamp(min=least)
    weights = weight.abs().amax(dim=1).clamp(min=1e-5)
    divisor = largest**strength / weights ** (1 - strength)
    return (divisor / divisor.log().mean().exp()).clamp(min=1e-4, max=1e4)


def static_ranges(
    inputs: InputStatistics, divisor: torch.Tensor | None, clip: float, float_columns: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero point and step of each channel, (K,) both: every step is the same in the smoothed space.

    Clipping shortens the range around the channel's middle; after GELU at its upper end only, since most values lie at
    the lower one.
    """
    ones = torch.ones_like(inputs.lowest) if divisor is None else divisor
    used = (inputs.highest > inputs.lowest).float()  # a constant channel does not count
    used[list(float_columns)] = 0
    if inputs.after_gelu:
        low = torch.full_like(ones, -GELU_MINIMUM)
        length = ((inputs.highest - low) / ones * used).amax() * clip * ones
    else:
        middle = (inputs.highest + inputs.lowest) / 2
        length = ((inputs.highest - inputs.lowest) / ones * used).amax() * clip * ones
        low = middle - length / 2
    return low, (length / LEVELS).clamp(min=TINY)


def outlier_channels(inputs: InputStatistics, count: int) -> tuple[int, ...]:
    """The channels of the longest ranges, ascending."""
    if count == 0:
        return ()
    return tuple(sorted(torch.topk(torch.maximum(inputs.highest, -inputs.lowest), count).indices.tolist()))


def int8_columns(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(K, N) float → (K, N) int8 in -127…127 and (N,) scales with weight ≈ values · scales."""
    scales = (weight.abs().amax(dim=0) / LARGEST).clamp(min=TINY)
    return torch.round(weight / scales).to(torch.int8), scales
