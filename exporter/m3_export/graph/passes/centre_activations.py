"""Subtract each channel's mean from what projections read: exact, and free at run time.

A few channels of every LayerNorm's output lie far from zero for all tokens; they stretch the steps of an INT8
activation for every other channel. With the mean taken out the steps get finer. Nothing is computed for it at run time:

    LayerNorm bias   β   becomes  β - μ                    the normalised value x becomes x - μ
    projection bias  b   becomes  b + μ W                  (x - μ) W + b + μ W  =  x W + b
    residual bias    b'  becomes  b' + μ                   y + b' + μ + (x - μ)  =  y + b' + x
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from m3_export.arrays import Float32Array
from m3_export.graph.passes.matching import constant, row_readers, shift_bias


@dataclass(frozen=True)
class _Bias:
    """A bias to correct: the Add that reads it at `index`, and what to add to it for a given mean."""

    add: ir.Node
    index: int
    weight: ir.Value | None  # None: the mean itself


class CentreActivations(ir.passes.InPlacePass):
    """Runs on the portable graph, before fusions. `means` are (H,) per LayerNormalization, in graph order.

    A normalised value that anything but projections and one residual sum reads (the last layer's) is left alone.
    """

    def __init__(self, means: Sequence[Float32Array]) -> None:
        self._means = means

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`.

        Raises:
            ValueError: there are not as many means as normalisations.
        """
        norms = [node for node in model.graph if node.op_type == "LayerNormalization" and not node.domain]
        if len(norms) != len(self._means):
            raise ValueError(f"{len(self._means)} means for {len(norms)} normalisations")
        centred = [_centre(model.graph, norm, mean) for norm, mean in zip(norms, self._means, strict=True)]
        return ir.passes.PassResult(model, modified=any(centred))


def _centre(graph: ir.Graph, norm: ir.Node, mean: Float32Array) -> bool:
    biases = _biases(norm.outputs[0])
    if biases is None or len(norm.inputs) != 3 or constant(norm.inputs[2]) is None:
        return False
    for bias in biases:
        shift = mean if bias.weight is None else mean.astype(np.float64) @ np.asarray(constant(bias.weight))
        _shift(graph, bias.add, bias.index, shift)
    _shift(graph, norm, 2, -mean)
    return True


def _biases(x: ir.Value) -> list[_Bias] | None:
    """Every bias that has to make up for the mean, or None if something reads x that cannot."""
    biases: list[_Bias] = []
    for read, node in row_readers(x):
        found = _of_projection(node, read) if node.op_type == "MatMul" else _of_residual(node, read)
        if found is None:
            return None
        biases.append(found)
    residuals = sum(bias.weight is None for bias in biases)
    return biases if residuals == 1 and len(biases) > 1 and not x.is_graph_output() else None


def _of_projection(matmul: ir.Node, x: ir.Value) -> _Bias | None:
    weight, uses = matmul.inputs[1], matmul.outputs[0].uses()
    if matmul.inputs[0] is not x or constant(weight) is None or len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    bias = _bias_index(uses[0].node)
    return None if bias is None else _Bias(uses[0].node, bias, weight)


def _of_residual(total: ir.Node, x: ir.Value) -> _Bias | None:
    """In `x + (y + bias)` the inner sum, whose bias takes the mean."""
    if total.op_type != "Add":
        return None
    other = total.inputs[1] if total.inputs[0] is x else total.inputs[0]
    inner = other.producer() if other is not None else None
    if other is None or inner is None or inner.op_type != "Add" or len(other.uses()) != 1:
        return None
    bias = _bias_index(inner)
    return None if bias is None else _Bias(inner, bias, None)


def _bias_index(add: ir.Node) -> int | None:
    for index in (1, 0):
        bias = constant(add.inputs[index])
        if bias is not None and bias.ndim == 1:
            return index
    return None


def _shift(graph: ir.Graph, node: ir.Node, index: int, shift: np.ndarray) -> None:
    bias = node.inputs[index]
    assert bias is not None
    shift_bias(graph, node, index, shift, f"{node.name}.{bias.name}.centred")
