"""Run the few outlier FFN neurons of a layer separately, in float: the same function, far easier to quantize.

Some neurons answer to one kind of token (in e5-small to <s>, in every text) with twenty times the value of all
others. A row's INT8 step has to reach that far, and the other neurons of that token drown in it. A neuron is a column
of FFN-in, a bias, and a row of FFN-out, so the FFN is a sum over neurons and can be split exactly:

    ffn(x) = gelu(x W_in + b) W_out                 with the outlier neurons' weights set to zero (they then give zero)
           + gelu(x W_in[outliers] + b[outliers]) W_out[outliers]     two thin products that stay float
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from m3_export.graph.passes.matching import add_initializer, constant, only_made_by, split_bias

OUTLIERS = ".outlier_neurons_"  # in the names of the thin weights


class SplitOutlierNeurons(ir.passes.InPlacePass):
    """Runs on the portable graph. `neurons` are the outliers of each layer, in graph order; an empty list is fine."""

    def __init__(self, neurons: Sequence[Sequence[int]]) -> None:
        self._neurons = neurons

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`.

        Raises:
            ValueError: there are not as many lists as Gelus.
        """
        gelus = [node for node in model.graph if node.op_type == "Gelu" and not node.domain]
        if len(gelus) != len(self._neurons):
            raise ValueError(f"{len(self._neurons)} lists of neurons for {len(gelus)} layers")
        split = [
            _split(model.graph, gelu, list(outliers), f"layers.{layer}{OUTLIERS}")
            for layer, (gelu, outliers) in enumerate(zip(gelus, self._neurons, strict=True))
            if outliers
        ]
        return ir.passes.PassResult(model, modified=any(split))


def _split(graph: ir.Graph, gelu: ir.Node, outliers: list[int], name: str) -> bool:
    parts = split_bias(gelu.inputs[0])
    ffn_in = only_made_by(parts[0], "MatMul") if parts else None
    uses = gelu.outputs[0].uses()
    ffn_out = uses[0].node if len(uses) == 1 and uses[0].node.op_type == "MatMul" else None
    if parts is None or ffn_in is None or ffn_out is None or ffn_out.inputs[0] is not gelu.outputs[0]:
        return False
    weights = [constant(ffn_in.inputs[1]), constant(parts[1]), constant(ffn_out.inputs[1])]
    if any(weight is None for weight in weights):
        return False
    w_in, bias, w_out = (np.array(weight) for weight in weights)  # copies: the originals belong to other variants
    thin = _thin_ffn(graph, ffn_in.inputs[0], w_in[:, outliers], bias[outliers], w_out[outliers], name, before=ffn_out)
    w_in[:, outliers], bias[outliers], w_out[outliers] = 0, 0, 0
    _replace_weight(graph, ffn_in, w_in)
    _replace_weight(graph, ffn_out, w_out)
    add = gelu.inputs[0].producer() if gelu.inputs[0] is not None else None
    assert add is not None
    add.replace_input_with(list(add.inputs).index(parts[1]), add_initializer(graph, f"{name}rest_bias", bias))
    _add_to(graph, ffn_out, thin)
    return True


def _thin_ffn(
    graph: ir.Graph,
    x: ir.Value | None,
    w_in: NDArray[np.float32],
    bias: NDArray[np.float32],
    w_out: NDArray[np.float32],
    name: str,
    before: ir.Node,
) -> ir.Node:
    values = [
        add_initializer(graph, name + part, np.ascontiguousarray(array))
        for part, array in (("in.weight", w_in), ("in.bias", bias), ("out.weight", w_out))
    ]
    product = ir.node("MatMul", inputs=[x, values[0]], name=f"{name}in")
    total = ir.node("Add", inputs=[product.outputs[0], values[1]])
    active = ir.node("Gelu", inputs=[total.outputs[0]])
    out = ir.node("MatMul", inputs=[active.outputs[0], values[2]], name=f"{name}out")
    graph.insert_before(before, [product, total, active, out])
    return out


def _replace_weight(graph: ir.Graph, matmul: ir.Node, weight: NDArray[np.float32]) -> None:
    old = matmul.inputs[1]
    assert old is not None
    if len(old.uses()) == 1 and old.name is not None:  # keep the name: quantization and the plan go by it
        old.const_value = ir.tensor(weight, name=old.name)
    else:
        matmul.replace_input_with(1, add_initializer(graph, f"{old.name}.rest", weight))


def _add_to(graph: ir.Graph, ffn_out: ir.Node, thin: ir.Node) -> None:
    """Everything that reads ffn_out's product reads the sum of both from now on."""
    product = ffn_out.outputs[0]
    total = ir.node("Add", inputs=[product, thin.outputs[0]])
    total.outputs[0].shape, total.outputs[0].dtype = product.shape, product.dtype
    readers = [(usage.node, usage.idx) for usage in product.uses() if usage.node is not total]
    graph.insert_after(ffn_out, [total])
    for node, index in readers:
        node.replace_input_with(index, total.outputs[0])
