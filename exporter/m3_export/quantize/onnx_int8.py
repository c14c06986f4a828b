"""A precision plan as an ONNX Runtime graph: signed int8 weights per column, uint8 activations per token, or float.

Per token (a scale for each row) because a scale for the whole tensor would make a text's vectors depend on its
neighbours and on padding. Signed weights because ONNX Runtime sends unsigned x signed, and nothing else, to VNNI and
AMX. The zero point of the activations is one constant, so no correction term is computed at run time:

* LayerNorm and attention outputs lie on both sides of zero: zero point 128, scale = largest magnitude / 127;
* Gelu never goes below -0.17: zero point 16 leaves 239 of 255 steps to the positive side, nearly twice as fine.

The row scale is multiplied back after the product; biases were moved into the fused operators that follow.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from m3_export.graph.passes.matching import MICROSOFT, add_initializer, replace
from m3_export.plan.plan import Kind, Projection
from m3_export.quantize.embedding import quantize_groups, widest_group
from m3_export.quantize.projection import GELU_MINIMUM, TINY, QuantizedProjection
from m3_export.quantize.weights import QuantizedWeight, dynamic_factors

BLOCKS_SINCE = 21  # the opset whose QuantizeLinear takes a scale for each block of values


@dataclass(frozen=True)
class RowQuantizer:
    """How rows become uint8: the constant zero point and the smallest scale that keeps every value in range."""

    zero_point: int
    steps_above: int
    smallest_scale: float


BOTH_SIDES = RowQuantizer(zero_point=128, steps_above=127, smallest_scale=TINY)
AFTER_GELU = RowQuantizer(zero_point=16, steps_above=239, smallest_scale=GELU_MINIMUM / 16)


class QuantizeProjections(ir.passes.InPlacePass):
    """Quantizes projections as planned, and the word embedding; what is not in `quantized` stays float.

    Runs on the graph that `passes.for_onnxruntime` made.
    """

    def __init__(self, quantized: Mapping[Projection, QuantizedProjection]) -> None:
        self._quantized = quantized

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`."""
        graph, rows = model.graph, _Rows(model.graph)
        modified = False
        for node in list(graph):
            if node.op_type == "MatMul" and (weight := QuantizedWeight.find(_input_name(node, 1), self._quantized)):
                _quantize_matmul(graph, node, rows, weight)
                modified = True
            elif node.op_type == "Gather" and _input_name(node, 0) == "words":
                _quantize_embedding(graph, node)
                modified = True
        if modified:
            graph.opset_imports.update({"": max(graph.opset_imports[""], BLOCKS_SINCE), MICROSOFT: 1})
        return ir.passes.PassResult(model, modified=modified)


def _input_name(node: ir.Node, index: int) -> str:
    value = node.inputs[index]
    return (value.name if value is not None else None) or ""


class _Rows:
    """Quantized rows of each activation, made once however many projections read it (query, key, value: one)."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._known: dict[tuple[ir.Value, Projection], tuple[ir.Value, ir.Value, RowQuantizer]] = {}
        self._zero_points: dict[tuple[RowQuantizer, object], ir.Value] = {}

    def of(self, x: ir.Value, weight: QuantizedWeight, before: ir.Node) -> tuple[ir.Value, ir.Value, RowQuantizer]:
        """(B, T, K) float → (B, T, K) uint8, the (B, T, 1) scales, and how it was done."""
        key = (x, weight.projection)
        if key not in self._known:
            after_gelu = weight.projection.kind is Kind.FFN_OUT and weight.whole.smoothing is None
            quantizer = AFTER_GELU if after_gelu else BOTH_SIDES
            self._known[key] = (*self._quantize(x, quantizer, weight, before), quantizer)
        return self._known[key]

    def _quantize(
        self, x: ir.Value, quantizer: RowQuantizer, weight: QuantizedWeight, before: ir.Node
    ) -> tuple[ir.Value, ir.Value]:
        graph, rows = self._graph, x
        nodes: list[ir.Node] = []

        def add(op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
            nodes.append(ir.node(op_type, inputs=list(inputs), attributes=attributes))
            return nodes[-1].outputs[0]

        def add_scale(reduction: str, step: float) -> ir.Value:
            extreme = add(reduction, rows, _shared(graph, "last_axis", np.array([-1], np.int64)), keepdims=1)
            return add("Mul", extreme, _shared(graph, f"step_{step:.4f}", np.float32(step)))

        if (factors := dynamic_factors(weight.whole)) is not None:
            rows = add("Mul", x, add_initializer(graph, f"{weight.projection}.factors", factors))
        step = 1 / quantizer.steps_above
        # both extremes of a row are found faster than its largest magnitude, for which |x| would be written
        scales = [add_scale("ReduceMax", step)]
        if quantizer is BOTH_SIDES:
            scales.append(add_scale("ReduceMin", -step))
        floor = _shared(graph, f"smallest_scale_{quantizer.zero_point}", np.float32(quantizer.smallest_scale))
        scale = add("Max", *scales, floor)
        key = (quantizer, _tokens(x))
        if key not in self._zero_points:
            zero_point = _shared(graph, f"zero_point_{quantizer.zero_point}", np.uint8(quantizer.zero_point))
            self._zero_points[key] = add("Expand", zero_point, add("Shape", scale))
        # a block is a whole row; a scale for each index of an axis would be applied row after row, by one thread
        width = weight.whole.values.shape[0]
        codes = add("QuantizeLinear", rows, scale, self._zero_points[key], axis=-1, block_size=width)
        graph.insert_before(before, nodes)
        return codes, scale


def _tokens(x: ir.Value) -> object:
    """The same for all activations that have a row for each of the same tokens."""
    tokens = () if x.shape is None else tuple(x.shape)[:-1]
    names = tuple(dim.value if isinstance(dim, ir.SymbolicDim) else dim for dim in tokens)
    return x if None in names or not names else names


def _quantize_matmul(graph: ir.Graph, node: ir.Node, known_rows: _Rows, weight: QuantizedWeight) -> None:
    x, name = node.inputs[0], _input_name(node, 1)
    assert x is not None
    rows, scale, quantizer = known_rows.of(x, weight, node)
    values = add_initializer(graph, f"{name}.int8", weight.values)
    scales = add_initializer(graph, f"{name}.scale", weight.scales)
    one = _shared(graph, "one", np.float32(1.0))
    zero_point = _shared(graph, f"zero_point_{quantizer.zero_point}", np.uint8(quantizer.zero_point))
    product = ir.node(
        "MatMulIntegerToFloat", inputs=[rows, values, one, scales, zero_point], domain=MICROSOFT, name=node.name
    )
    nodes = [product, ir.node("Mul", inputs=[product.outputs[0], scale])]
    if weight.whole.float_columns:
        nodes += _float_product(graph, x, weight, nodes[-1].outputs[0])
    replace(graph, node, nodes, nodes[-1].outputs[0])


def _float_product(graph: ir.Graph, x: ir.Value, weight: QuantizedWeight, product: ir.Value) -> list[ir.Node]:
    """The outlier channels' share of the product, in float, and the sum of both."""
    name = f"{weight.projection}.float_columns"
    which = _shared(graph, f"{name}.channels", np.array(weight.whole.float_columns, np.int64))
    channels = ir.node("Gather", inputs=[x, which], attributes={"axis": -1})
    thin_weight = add_initializer(graph, f"{name}.{weight.number}.weight", weight.float_weight)
    thin = ir.node("MatMul", inputs=[channels.outputs[0], thin_weight])
    return [channels, thin, ir.node("Add", inputs=[product, thin.outputs[0]])]


def _quantize_embedding(graph: ir.Graph, node: ir.Node) -> None:
    words, ids = node.inputs
    assert words is not None and ids is not None and words.const_value is not None
    table = words.const_value.numpy()
    values, group_scales = quantize_groups(table, widest_group(table.shape[1]))
    codes = add_initializer(graph, "words.int8", values)
    scales = add_initializer(graph, "words.scale", group_scales)
    shape = add_initializer(graph, "words.shape", np.array([0, 0, table.shape[1]], np.int64))
    to_float = {"to": ir.DataType.FLOAT}
    rows = ir.node("Gather", inputs=[codes, ids], attributes={"axis": 0}, name=node.name)
    row_scales = ir.node("Gather", inputs=[scales, ids], attributes={"axis": 0})
    casts = [ir.node("Cast", inputs=[n.outputs[0]], attributes=to_float) for n in (rows, row_scales)]
    product = ir.node("Mul", inputs=[cast.outputs[0] for cast in casts])
    joined = ir.node("Reshape", inputs=[product.outputs[0], shape])
    replace(graph, node, [rows, row_scales, *casts, product, joined], joined.outputs[0])


def _shared(graph: ir.Graph, name: str, array: np.ndarray | np.generic) -> ir.Value:
    """A small constant of the pass, made once per graph."""
    name = f"int8.{name}"
    return graph.initializers[name] if name in graph.initializers else add_initializer(graph, name, np.asarray(array))
