"""Subtract each channel's mean from what projections read: exact, and free at run time.

A few channels of every LayerNorm's output lie far from zero for all tokens; they stretch the steps of an INT8
activation for every other channel. With the mean taken out the steps get finer. Nothing is computed for it at run time:

    LayerNorm bias   β   becomes  β - μ                    the normalised value x becomes x - μ
    projection bias  b   becomes  b + μ W                  (x - μ) W + b + μ W  =  x W + b
    residual bias    b'  becomes  b' + μ                   y + b' + μ + (x - μ)  =  y + b' + x
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from m3_export.arrays import Float32Array
from m3_export.graph.passes.matching import constant, shift_bias
from m3_export.graph.passes.shift_biases import ShiftBiases

# What reads a normalised value, and the projection that it is added to: before the attention of a layer, and after it.
_READERS = ((("query", "key", "value"), "attention_out"), (("ffn_in", "outlier_neurons_in"), "ffn_out"))


class CentreActivations(ir.passes.InPlacePass):
    """Runs on the portable graph, before fusions. `means` are (H,) per LayerNormalization, in graph order.

    The last one's value, which the heads read, is left alone.
    """

    def __init__(self, means: Sequence[Float32Array]) -> None:
        self._means = means

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`.

        Raises:
            ValueError: there are not as many means as normalisations, or a projection or its bias is not there.
        """
        graph = model.graph
        norms = [node for node in graph if node.op_type == "LayerNormalization" and not node.domain]
        if len(norms) != len(self._means):
            raise ValueError(f"{len(self._means)} means for {len(norms)} normalisations")
        shifts: dict[str, np.ndarray] = {}
        for position, (norm, mean) in enumerate(zip(norms[:-1], self._means, strict=False)):
            layer, is_after_attention = divmod(position, 2)
            readers, residual = _READERS[is_after_attention]
            for name in (f"layers.{layer}.{reader}.weight" for reader in readers):
                if name in graph.initializers:
                    shifts[name] = mean.astype(np.float64) @ np.asarray(constant(graph.initializers[name]))
                elif not name.endswith("outlier_neurons_in.weight"):  # not every layer has some
                    raise ValueError(f"the graph has no {name!r}")
            shifts[f"layers.{layer}.{residual}.weight"] = mean
            shift_bias(graph, norm, 2, -mean, f"{norm.name}.bias.centred")
        return ShiftBiases(shifts)(model)
