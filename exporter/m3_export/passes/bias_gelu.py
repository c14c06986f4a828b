"""Gelu(x + bias) → BiasGelu."""

import onnx_ir as ir

from m3_export.passes.matching import MICROSOFT, replace, split_bias


class FuseBiasGelu(ir.passes.InPlacePass):
    """Fuses the exact (erf) Gelu behind a bias; the tanh approximation is another function and stays."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`."""
        fused = [_fuse(model.graph, node) for node in list(model.graph) if node.op_type == "Gelu" and not node.domain]
        return ir.passes.PassResult(model, modified=any(fused))


def _fuse(graph: ir.Graph, gelu: ir.Node) -> bool:
    approximate = gelu.attributes.get("approximate")
    if approximate is not None and approximate.as_string() != "none":
        return False
    parts = split_bias(gelu.inputs[0])
    if parts is None:
        return False
    node = ir.node("BiasGelu", inputs=list(parts), domain=MICROSOFT, name=gelu.name)
    graph.opset_imports[MICROSOFT] = 1
    replace(graph, gelu, [node], node.outputs[0])
    return True
