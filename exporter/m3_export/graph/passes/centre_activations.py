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
from numpy.typing import NDArray

from m3_export.graph.passes.matching import add_initializer, constant, row_readers

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Place:
    """A bias to correct: the Add that reads it at `index`, and what to add to it for a given mean."""

    add: ir.Node
    index: int
    weight: ir.Value | None  # None: the mean itself


class CentreActivations(ir.passes.InPlacePass):
    """Runs on the portable graph, before fusions. `means` are (H,) per LayerNormalization, in graph order.

    A normalised value that anything but projections and one residual sum reads (the last layer's) is left alone.
    """

    def __init__(self, means: Sequence[Floats]) -> None:
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


def _centre(graph: ir.Graph, norm: ir.Node, mean: Floats) -> bool:
    places = _places(norm.outputs[0])
    if places is None or len(norm.inputs) != 3 or constant(norm.inputs[2]) is None:
        return False
    for place in places:
        shift = mean if place.weight is None else mean.astype(np.float64) @ np.asarray(constant(place.weight))
        _shift(graph, place.add, place.index, shift)
    _shift(graph, norm, 2, -mean)
    return True


def _places(x: ir.Value) -> list[_Place] | None:
    """Every bias that has to make up for the mean, or None if something reads x that cannot."""
    places: list[_Place] = []
    for read, node in row_readers(x):
        place = _of_projection(node, read) if node.op_type == "MatMul" else _of_residual(node, read)
        if place is None:
            return None
        places.append(place)
    residuals = sum(place.weight is None for place in places)
    return places if residuals == 1 and len(places) > 1 and not x.is_graph_output() else None


def _of_projection(matmul: ir.Node, x: ir.Value) -> _Place | None:
    weight, uses = matmul.inputs[1], matmul.outputs[0].uses()
    if matmul.inputs[0] is not x or constant(weight) is None or len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    bias = _bias_index(uses[0].node)
    return None if bias is None else _Place(uses[0].node, bias, weight)


def _of_residual(total: ir.Node, x: ir.Value) -> _Place | None:
    """In `x + (y + bias)` the inner sum, whose bias takes the mean."""
    if total.op_type != "Add":
        return None
    other = total.inputs[1] if total.inputs[0] is x else total.inputs[0]
    inner = other.producer() if other is not None else None
    if other is None or inner is None or inner.op_type != "Add" or len(other.uses()) != 1:
        return None
    bias = _bias_index(inner)
    return None if bias is None else _Place(inner, bias, None)


def _bias_index(add: ir.Node) -> int | None:
    for index in (1, 0):
        bias = constant(add.inputs[index])
        if bias is not None and bias.ndim == 1:
            return index
    return None


def _shift(graph: ir.Graph, node: ir.Node, index: int, shift: Floats | NDArray[np.float64]) -> None:
    """Give the node an initializer of its own, shifted; equal biases may share one after tracing."""
    old = node.inputs[index]
    assert old is not None
    shifted = (np.asarray(constant(old), dtype=np.float64) + shift).astype(np.float32)
    name = f"{node.name}.{old.name}.centred"
    node.replace_input_with(index, add_initializer(graph, name, shifted))
