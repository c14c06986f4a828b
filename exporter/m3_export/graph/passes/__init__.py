"""Graph to graph, one pass per file; each is an onnx_ir pass.

`portable` is what every engine reads (standard operators only). `for_onnxruntime` makes of it the graph that ONNX
Runtime runs fastest, `for_openvino` one that packs short texts into rows. A pass that does not recognise its pattern
leaves the graph as it is, so the order matters only where one pass makes what the next one looks for. Two go by the
names of M3Model's weights and refuse a graph without them: `CentreActivations` and `ShiftBiases`.
"""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from m3_export.arrays import Float32Array
from m3_export.graph.passes.centre_activations import CentreActivations
from m3_export.graph.passes.corrected_scores import CorrectScores
from m3_export.graph.passes.flash_attention import FuseAttention
from m3_export.graph.passes.last_hidden_state import KeepLastHiddenState
from m3_export.graph.passes.last_layer_rows import KeepLastLayerRows
from m3_export.graph.passes.outlier_neurons import SplitOutlierNeurons
from m3_export.graph.passes.packed_rows import PackRows
from m3_export.graph.passes.skip_layer_norm import PreventSkipLayerNorm


def portable(model: ir.Model) -> ir.Model:
    """The traced graph in place; with CLS pooling, `kept_tokens` as a third input.

    The third input has a default, so a caller need not know it.
    """
    return _after(model, KeepLastLayerRows())


def for_int8(model: ir.Model, means: Sequence[Float32Array], outliers: Sequence[Sequence[int]]) -> ir.Model:
    """A copy that computes the same and is easier to quantize: outlier neurons in float, activations centred."""
    return ir.passes.Sequential(SplitOutlierNeurons(outliers), CentreActivations(means))(model.clone()).model


def with_score_correction(model: ir.Model, scale: float, shift: float) -> ir.Model:
    """A copy of a reranker's graph whose scores are `scale` times as large, plus `shift`."""
    return _after(model.clone(), CorrectScores(scale, shift))


def for_onnxruntime(model: ir.Model) -> ir.Model:
    """A copy that ONNX Runtime runs fast; the weights are shared with `model`.

    What its own optimiser fuses well (Gelu with the bias in front of it) is left to it.
    """
    return _after(model.clone(), FuseAttention(), PreventSkipLayerNorm())


def for_openvino(model: ir.Model) -> ir.Model:
    """A copy that can pack short texts into rows."""
    return _after(model.clone(), PackRows())


def encoder_alone(model: ir.Model) -> ir.Model:
    """The graph without heads, changed in place: `last_hidden_state` is its only output."""
    return _after(model, KeepLastHiddenState())


def _after(model: ir.Model, *steps: ir.passes.PassBase) -> ir.Model:
    """A model changed in place, without what nothing reads any more."""
    return ir.passes.Sequential(*steps, RemoveUnusedNodesPass(), RemoveUnusedOpsetsPass())(model).model
