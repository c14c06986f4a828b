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

from m3_export.graph.passes.matching import MICROSOFT, add_initializer
from m3_export.plan.plan import Kind, Projection
from m3_export.quantize.embedding import quantize_groups, widest_group
from m3_export.quantize.projection import GELU_MINIMUM, TINY, QuantizedProjection

BLOCKS_SINCE = 21  # the opset whose QuantizeLinear takes a scale for each block of values
WEIGHTS = {f"{weight}.weight": kind for kind in Kind for weight in kind.weights}


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
            if node.op_type == "MatMul" and (found := _projection_of(node)) is not None and found[0] in self._quantized:
                projection, part = found
                _quantize_matmul(graph, node, rows, _Part(projection, self._quantized[projection], part))
                modified = True
            elif node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[0].name == "words":
                _quantize_embedding(graph, node)
                modified = True
        if modified:
            graph.opset_imports.update({"": max(graph.opset_imports[""], BLOCKS_SINCE), MICROSOFT: 1})
        return ir.passes.PassResult(model, modified=modified)


def _projection_of(node: ir.Node) -> tuple[Projection, int] | None:
    """`layers.3.key.weight` → layer.3.qkv, and which of its weights it is."""
    name = node.inputs[1].name if node.inputs[1] is not None else None
    word, _, rest = (name or "").partition(".")
    layer, _, weight = rest.partition(".")
    if word != "layers" or not layer.isdecimal() or weight not in WEIGHTS:
        return None
    kind = WEIGHTS[weight]
    return Projection(int(layer), kind), kind.weights.index(weight.removesuffix(".weight"))


@dataclass(frozen=True)
class _Part:
    """One weight of a projection."""

    projection: Projection
    quantized: QuantizedProjection
    number: int

    @property
    def columns(self) -> slice:
        width = self.quantized.values.shape[1] // len(self.projection.kind.weights)
        return slice(self.number * width, (self.number + 1) * width)


class _Rows:
    """Quantized rows of each activation, made once however many projections read it (query, key, value: one)."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._known: dict[tuple[ir.Value, Projection], tuple[ir.Value, ir.Value, RowQuantizer]] = {}
        self._zero_points: dict[tuple[RowQuantizer, object], ir.Value] = {}

    def of(self, x: ir.Value, part: _Part, before: ir.Node) -> tuple[ir.Value, ir.Value, RowQuantizer]:
        """(B, T, K) float → (B, T, K) uint8, the (B, T, 1) scales, and how it was done."""
        key = (x, part.projection)
        if key not in self._known:
            after_gelu = part.projection.kind is Kind.FFN_OUT and part.quantized.smoothing is None
            quantizer = AFTER_GELU if after_gelu else BOTH_SIDES
            self._known[key] = (*self._quantize(x, quantizer, part, before), quantizer)
        return self._known[key]

    def _quantize(
        self, x: ir.Value, quantizer: RowQuantizer, part: _Part, before: ir.Node
    ) -> tuple[ir.Value, ir.Value]:
        graph, rows = self._graph, x
        nodes: list[ir.Node] = []

        def add(op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
            nodes.append(ir.node(op_type, inputs=list(inputs), attributes=attributes))
            return nodes[-1].outputs[0]

        def add_scale(reduction: str, step: float) -> ir.Value:
            extreme = add(reduction, rows, _shared(graph, "last_axis", np.array([-1], np.int64)), keepdims=1)
            return add("Mul", extreme, _shared(graph, f"step_{step:.4f}", np.float32(step)))

        if (factors := _factors(part.quantized)) is not None:
            rows = add("Mul", x, add_initializer(graph, f"{part.projection}.factors", factors))
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
        width = part.quantized.values.shape[0]
        codes = add("QuantizeLinear", rows, scale, self._zero_points[key], axis=-1, block_size=width)
        graph.insert_before(before, nodes)
        return codes, scale


def _tokens(x: ir.Value) -> object:
    """The same for all activations that have a row for each of the same tokens."""
    tokens = () if x.shape is None else tuple(x.shape)[:-1]
    names = tuple(dim.value if isinstance(dim, ir.SymbolicDim) else dim for dim in tokens)
    return x if None in names or not names else names


def _factors(quantized: QuantizedProjection) -> np.ndarray | None:
    """(K,) what channels are multiplied with before their range is taken; None if that is 1 everywhere."""
    factors = (
        np.ones(quantized.values.shape[0], np.float32)
        if quantized.smoothing is None
        else 1 / quantized.smoothing.numpy()
    )
    factors[list(quantized.float_columns)] = 0
    return None if (factors == 1).all() else factors


def _quantize_matmul(graph: ir.Graph, node: ir.Node, known_rows: _Rows, part: _Part) -> None:
    x, weight = node.inputs
    assert x is not None and weight is not None
    rows, scale, quantizer = known_rows.of(x, part, node)
    quantized, columns = part.quantized, part.columns
    values = add_initializer(graph, f"{weight.name}.int8", np.ascontiguousarray(quantized.values[:, columns].numpy()))
    scales = add_initializer(graph, f"{weight.name}.scale", quantized.scales[columns].numpy())
    one = _shared(graph, "one", np.float32(1.0))
    zero_point = _shared(graph, f"zero_point_{quantizer.zero_point}", np.uint8(quantizer.zero_point))
    product = ir.node(
        "MatMulIntegerToFloat", inputs=[rows, values, one, scales, zero_point], domain=MICROSOFT, name=node.name
    )
    nodes = [product, ir.node("Mul", inputs=[product.outputs[0], scale])]
    if quantized.float_columns:
        nodes += _float_product(graph, x, part, nodes[-1].outputs[0])
    _put_instead(graph, node, nodes)


def _float_product(graph: ir.Graph, x: ir.Value, part: _Part, product: ir.Value) -> list[ir.Node]:
    """The outlier channels' share of the product, in float, and the sum of both."""
    name, weight = f"{part.projection}.float_columns", part.quantized.float_weight[:, part.columns].numpy()
    which = _shared(graph, f"{name}.channels", np.array(part.quantized.float_columns, np.int64))
    channels = ir.node("Gather", inputs=[x, which], attributes={"axis": -1})
    thin_weight = add_initializer(graph, f"{name}.{part.number}.weight", np.ascontiguousarray(weight))
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
    _put_instead(graph, node, [rows, row_scales, *casts, product, joined])


def _put_instead(graph: ir.Graph, old: ir.Node, new: list[ir.Node]) -> None:
    ir.convenience.replace_nodes_and_values(graph, old, [old], new, [old.outputs[0]], [new[-1].outputs[0]])


def _shared(graph: ir.Graph, name: str, array: np.ndarray | np.generic) -> ir.Value:
    """A small constant of the pass, made once per graph."""
    name = f"int8.{name}"
    return graph.initializers[name] if name in graph.initializers else add_initializer(graph, name, np.asarray(array))
