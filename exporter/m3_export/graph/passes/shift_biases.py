"""Add to the biases of projections what their INT8 products lack: zero points, and the mean of what rounding loses.

Runs on the portable graph, before fusions take the biases up, so that one pass serves every engine.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from m3_export.graph.passes.matching import is_vector, shift_bias


class ShiftBiases(ir.passes.InPlacePass):
    """`shifts` are (N,) by the name of the weight: `layers.3.ffn_out.weight`."""

    def __init__(self, shifts: Mapping[str, np.ndarray]) -> None:
        self._shifts = shifts

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`.

        Raises:
            ValueError: a weight is not there, or no bias follows its product.
        """
        products = {node.inputs[1].name: node for node in model.graph if node.op_type == "MatMul" and node.inputs[1]}
        for name, shift in self._shifts.items():
            add = _bias_add(products[name]) if name in products else None
            if add is None:
                raise ValueError(f"no product with {name!r} that a bias is added to")
            index = next(i for i, value in enumerate(add.inputs) if is_vector(value))
            shift_bias(model.graph, add, index, shift, f"{name}.bias.shifted")
        return ir.passes.PassResult(model, modified=bool(self._shifts))


def _bias_add(product: ir.Node) -> ir.Node | None:
    """The sum that adds the bias: the next one, or the one after what outlier neurons add."""
    node = product
    for _ in range(2):
        uses = node.outputs[0].uses()
        if len(uses) != 1 or uses[0].node.op_type != "Add":
            return None
        node = uses[0].node
        if any(is_vector(value) for value in node.inputs):
            return node
    return None
