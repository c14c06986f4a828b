"""LayerNormalization(x + skip) and LayerNormalization(x + bias + skip) → SkipLayerNormalization."""

import onnx_ir as ir

from m3_export.passes.matching import MICROSOFT, is_vector, only_made_by, replace, split_bias


class FuseSkipLayerNorm(ir.passes.InPlacePass):
    """Fuses the residual sum, and the bias in front of it, into the normalisation that reads it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`."""
        norms = [n for n in list(model.graph) if n.op_type == "LayerNormalization" and not n.domain]
        fused = [_fuse(model.graph, norm) for norm in norms]
        return ir.passes.PassResult(model, modified=any(fused))


def _fuse(graph: ir.Graph, norm: ir.Node) -> bool:
    total = only_made_by(norm.inputs[0], "Add")
    if total is None or len(norm.inputs) != 3 or not _over_last_axis(norm):
        return False
    left, right = total.inputs
    if left is None or right is None or is_vector(left) or is_vector(right) or not _same_shape(left, right):
        return False  # a plain bias or a broadcast sum is no residual
    inputs: list[ir.Value | None] = [left, right, norm.inputs[1], norm.inputs[2]]
    for mine, other in ((left, right), (right, left)):
        if parts := split_bias(mine):
            inputs = [parts[0], other, norm.inputs[1], norm.inputs[2], parts[1]]
            break
    node = ir.node(
        "SkipLayerNormalization",
        inputs=inputs,
        domain=MICROSOFT,
        name=norm.name,
        attributes={"epsilon": norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5},
    )
    graph.opset_imports[MICROSOFT] = 1
    replace(graph, norm, [node], node.outputs[0])
    return True


def _over_last_axis(norm: ir.Node) -> bool:
    axis = norm.attributes["axis"].as_int() if "axis" in norm.attributes else -1
    rank = len(norm.inputs[0].shape) if norm.inputs[0] is not None and norm.inputs[0].shape is not None else None
    return (axis == -1 or (rank is not None and axis == rank - 1)) and len(norm.outputs) == 1


def _same_shape(left: ir.Value, right: ir.Value) -> bool:
    return left.shape is not None and right.shape is not None and left.shape == right.shape
