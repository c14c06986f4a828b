"""Stretch and shift the scores of a reranker: its last product and bias take both, so it costs nothing."""

import numpy as np
import onnx_ir as ir

from m3_export.graph.passes.matching import add_initializer, constant, is_vector, made_by


class CorrectScores(ir.passes.InPlacePass):
    """Every score becomes `scale` times itself plus `shift`; runs on the portable graph of a reranker."""

    def __init__(self, scale: float, shift: float) -> None:
        self._scale, self._shift = scale, shift

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`.

        Raises:
            ValueError: the graph is no reranker's.
        """
        add = made_by(model.graph.outputs[0], "Add")
        biases = [index for index, value in enumerate(add.inputs) if is_vector(value)] if add else []
        product = made_by(add.inputs[1 - biases[0]], "MatMul") if add and biases else None
        if add is None or product is None or constant(product.inputs[1]) is None:
            raise ValueError("the graph does not end in a product and a bias, as a reranker's does")
        self._change(model.graph, product, 1, "weight", 0.0)
        self._change(model.graph, add, biases[0], "bias", self._shift)
        return ir.passes.PassResult(model, modified=True)

    def _change(self, graph: ir.Graph, node: ir.Node, index: int, kind: str, shift: float) -> None:
        exact = np.asarray(constant(node.inputs[index]), np.float64)
        corrected = (exact * self._scale + shift).astype(np.float32)
        node.replace_input_with(index, add_initializer(graph, f"classifier.out_proj.corrected.{kind}", corrected))
