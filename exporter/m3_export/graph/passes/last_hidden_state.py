"""The encoder without its heads: one output, the last layer's rows, by the name that other libraries ask for.

Optimum and sentence-transformers pool and normalise by themselves, and look the output `last_hidden_state` up by name.
"""

import onnx_ir as ir

from m3_runtime.engines import KEPT_TOKENS

LAST_HIDDEN_STATE = "last_hidden_state"

NORMS = frozenset({"LayerNormalization", "SkipLayerNormalization"})


class KeepLastHiddenState(ir.passes.InPlacePass):
    """Runs on a finished graph, fused or not, quantized or not; what the heads alone need is left without a reader."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`."""
        graph = model.graph
        norms = [node for node in graph if node.op_type in NORMS]
        if not norms:
            return ir.passes.PassResult(model, modified=False)
        hidden = norms[-1].outputs[0]
        graph.outputs[:] = [hidden]
        hidden.name = LAST_HIDDEN_STATE
        _keep_all_rows(graph, hidden)
        return ir.passes.PassResult(model, modified=True)


def _keep_all_rows(graph: ir.Graph, hidden: ir.Value) -> None:
    """The caller no longer chooses how many rows the last layer has: `kept_tokens` is its default, all."""
    kept = [value for value in graph.inputs if value.name == KEPT_TOKENS]
    for value in kept:
        graph.inputs.remove(value)
    tokens = graph.inputs[0].shape
    if kept and tokens is not None and hidden.shape is not None:
        hidden.shape = ir.Shape([*tokens, hidden.shape[-1]])
