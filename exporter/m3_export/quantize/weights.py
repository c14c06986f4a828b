"""One weight of a quantized projection, as graphs name it: what the writers of both engines need of it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from m3_export.arrays import Float32Array
from m3_export.plan.plan import Kind, Projection
from m3_export.quantize.projection import QuantizedProjection

KIND_OF_WEIGHT = {weight: kind for kind in Kind for weight in kind.weights}
_NAME = re.compile(rf"layers\.(\d+)\.({'|'.join(KIND_OF_WEIGHT)})\.weight")


def weight_names(projection: Projection) -> tuple[str, ...]:
    """The names of a projection's weights: `layers.3.ffn_in.weight`.

    >>> weight_names(Projection(3, Kind.QKV))
    ('layers.3.query.weight', 'layers.3.key.weight', 'layers.3.value.weight')
    """
    return tuple(f"layers.{projection.layer}.{weight}.weight" for weight in projection.kind.weights)


@dataclass(frozen=True)
class QuantizedWeight:
    """One weight (K, N); query, key and value are three weights of one projection."""

    projection: Projection
    whole: QuantizedProjection  # the projection, quantized
    columns: slice  # the weight's columns of it
    number: int  # which of the projection's weights

    @classmethod
    def find(cls, name: str, quantized: Mapping[Projection, QuantizedProjection]) -> "QuantizedWeight | None":
        """The weight of that name; None if it is no projection's, or stays float."""
        match = _NAME.fullmatch(name)
        projection = Projection(int(match[1]), KIND_OF_WEIGHT[match[2]]) if match else None
        if match is None or projection is None or projection not in quantized:
            return None
        whole, weights = quantized[projection], projection.kind.weights
        number, width = weights.index(match[2]), whole.values.shape[1] // len(weights)
        return cls(projection, whole, slice(number * width, (number + 1) * width), number)

    @property
    def values(self) -> np.ndarray:
        """(K, N) int8."""
        return np.ascontiguousarray(self.whole.values[:, self.columns].numpy())

    @property
    def scales(self) -> Float32Array:
        """(N,) of each column."""
        return self.whole.scales[self.columns].numpy()

    @property
    def float_weight(self) -> Float32Array:
        """(A, N), the rows of the outlier columns that are multiplied in float."""
        return np.ascontiguousarray(self.whole.float_weight[:, self.columns].numpy())


def dynamic_factors(quantized: QuantizedProjection) -> Float32Array | None:
    """(K,) what channels are multiplied with before their dynamic range is taken; None if that is 1 everywhere."""
    factors = np.ones(quantized.values.shape[0], np.float32)
    if quantized.smoothing is not None:
        factors = 1 / quantized.smoothing.numpy()
    factors[list(quantized.float_columns)] = 0
    return None if (factors == 1).all() else factors
