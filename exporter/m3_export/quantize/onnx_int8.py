"""ONNX Runtime INT8: signed int8 weights per column, uint8 activations per token.

Per token (a scale for each row) because a scale for the whole tensor would make a text's vectors depend on its
neighbours and on padding. Signed weights because ONNX Runtime sends unsigned x signed, and nothing else, to VNNI and
AMX. The zero point of the activations is one constant, so no correction term is computed at run time:

* LayerNorm and attention outputs lie on both sides of zero: zero point 128, scale = largest magnitude / 127;
* Gelu never goes below -0.17: zero point 16 leaves 239 of 255 steps to the positive side, nearly twice as fine.

The row scale is multiplied back after the product; biases were moved into the fused operators that follow.

The word embedding has a scale for every 32 values. One for a row is not enough for the special tokens: in e5-small the
row of </s> has an element 46 times its mean, and </s> is in every text.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from m3_export.passes.loud_neurons import LOUD
from m3_export.passes.matching import MICROSOFT, add_initializer
from m3_runtime.manifest import ProjectionPrecision

PRECISION = "int8 per column x uint8 per token"
EMBEDDING_PRECISION = "int8 per group of {}"
EMBEDDING_GROUPS = (32, 16, 8, 4, 2, 1)  # the largest that divides H
GELU_MINIMUM = 0.17  # |min of x Φ(x)| = 0.16997
TINY = 1e-12  # a row of zeros must not divide by zero


@dataclass(frozen=True)
class RowQuantizer:
    """How rows become uint8: the constant zero point and the smallest scale that keeps every value in range."""

    zero_point: int
    steps_above: int
    smallest_scale: float


BOTH_SIDES = RowQuantizer(zero_point=128, steps_above=127, smallest_scale=TINY)
AFTER_GELU = RowQuantizer(zero_point=16, steps_above=239, smallest_scale=GELU_MINIMUM / 16)


class QuantizeProjections(ir.passes.InPlacePass):
    """Quantizes the six projections of every layer and the word embedding; heads stay float.

    Runs on the graph that `passes.for_onnxruntime` made. `plan` lists what was quantized, in graph order.
    """

    def __init__(self) -> None:
        self.plan: list[ProjectionPrecision] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`."""
        graph, rows = model.graph, _Rows(model.graph)
        self.plan.clear()
        for node in list(graph):
            weight = node.inputs[1] if len(node.inputs) > 1 else None
            name = weight.name or "" if weight is not None and weight.const_value is not None else ""
            if node.op_type == "MatMul" and name.startswith("layers.") and LOUD not in name:
                _quantize_matmul(graph, node, rows)
                self.plan.append(ProjectionPrecision(_projection(name), PRECISION))
            elif node.op_type == "Gather" and node.inputs[0] is not None and node.inputs[0].name == "words":
                group = _quantize_embedding(graph, node)
                self.plan.append(ProjectionPrecision("words", EMBEDDING_PRECISION.format(group)))
        return ir.passes.PassResult(model, modified=bool(self.plan))


def _projection(weight_name: str) -> str:
    """`layers.3.ffn_out.weight` → `layer.3.ffn_out`."""
    return weight_name.removesuffix(".weight").replace("layers.", "layer.", 1)


class _Rows:
    """Quantized rows of each activation, made once however many projections read it (query, key, value: one)."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._known: dict[ir.Value, tuple[ir.Value, ir.Value, RowQuantizer]] = {}

    def of(self, x: ir.Value, before: ir.Node) -> tuple[ir.Value, ir.Value, RowQuantizer]:
        """(B, T, K) float → (B, T, K) uint8, the (B, T, 1) scales, and how it was done."""
        if x not in self._known:
            producer = x.producer()
            is_gelu = producer is not None and producer.op_type in ("BiasGelu", "Gelu")
            quantizer = AFTER_GELU if is_gelu else BOTH_SIDES
            self._known[x] = (*self._quantize(x, quantizer, before), quantizer)
        return self._known[x]

    def _quantize(self, x: ir.Value, quantizer: RowQuantizer, before: ir.Node) -> tuple[ir.Value, ir.Value]:
        graph, last_axis = self._graph, _shared(self._graph, "last_axis", np.array([-1], np.int64))
        nodes: list[ir.Node] = []

        def add(op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
            nodes.append(ir.node(op_type, inputs=list(inputs), attributes=attributes))
            return nodes[-1].outputs[0]

        reach = x if quantizer is AFTER_GELU else add("Abs", x)
        largest = add("ReduceMax", reach, last_axis, keepdims=1)
        steps = _shared(graph, f"one_over_{quantizer.steps_above}", np.float32(1 / quantizer.steps_above))
        floor = _shared(graph, f"smallest_scale_{quantizer.zero_point}", np.float32(quantizer.smallest_scale))
        scale = add("Max", add("Mul", largest, steps), floor)
        one = _shared(graph, "one", np.float32(1.0))
        zero_point = _shared(graph, f"zero_point_{quantizer.zero_point}", np.uint8(quantizer.zero_point))
        rows = add("QuantizeLinear", add("Mul", x, add("Reciprocal", scale)), one, zero_point)
        graph.insert_before(before, nodes)
        return rows, scale


def _quantize_matmul(graph: ir.Graph, node: ir.Node, known_rows: _Rows) -> None:
    x, weight = node.inputs
    assert x is not None and weight is not None and weight.const_value is not None
    rows, scale, quantizer = known_rows.of(x, node)
    values, column_scales = quantize_columns(weight.const_value.numpy())
    quantized = add_initializer(graph, f"{weight.name}.int8", values)
    scales = add_initializer(graph, f"{weight.name}.scale", column_scales)
    one = _shared(graph, "one", np.float32(1.0))
    zero_point = _shared(graph, f"zero_point_{quantizer.zero_point}", np.uint8(quantizer.zero_point))
    product = ir.node(
        "MatMulIntegerToFloat", inputs=[rows, quantized, one, scales, zero_point], domain=MICROSOFT, name=node.name
    )
    scaled = ir.node("Mul", inputs=[product.outputs[0], scale])
    _put_instead(graph, node, [product, scaled])


def _quantize_embedding(graph: ir.Graph, node: ir.Node) -> int:
    """Returns the group size."""
    words, ids = node.inputs
    assert words is not None and ids is not None and words.const_value is not None
    table = words.const_value.numpy()
    group = next(size for size in EMBEDDING_GROUPS if table.shape[1] % size == 0)
    values, group_scales = quantize_groups(table, group)
    quantized = add_initializer(graph, "words.int8", values)
    scales = add_initializer(graph, "words.scale", group_scales)
    shape = add_initializer(graph, "words.shape", np.array([0, 0, table.shape[1]], np.int64))
    to_float = {"to": ir.DataType.FLOAT}
    rows = ir.node("Gather", inputs=[quantized, ids], attributes={"axis": 0}, name=node.name)
    row_scales = ir.node("Gather", inputs=[scales, ids], attributes={"axis": 0})
    casts = [ir.node("Cast", inputs=[n.outputs[0]], attributes=to_float) for n in (rows, row_scales)]
    product = ir.node("Mul", inputs=[cast.outputs[0] for cast in casts])
    joined = ir.node("Reshape", inputs=[product.outputs[0], shape])
    _put_instead(graph, node, [rows, row_scales, *casts, product, joined])
    return group


def quantize_groups(table: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """(V, H) float → (V, H/group, group) int8 and (V, H/group, 1) float16 scales with table ≈ values * scales.

    Scales are rounded up to float16 first and values then fitted to them, so the rounding costs next to nothing.
    """
    grouped = table.reshape(len(table), -1, group)
    exact = np.abs(grouped).max(axis=-1, keepdims=True) / 127.0
    smallest = np.finfo(np.float16).smallest_normal
    scales = np.maximum(exact * (1 + 2.0**-10), smallest).astype(np.float16)
    return np.rint(grouped / scales.astype(np.float32)).clip(-127, 127).astype(np.int8), scales


def quantize_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, N) float → (K, N) int8 in -127…127 and (N,) scales with weight ≈ values * scales.

    >>> quantize_columns(np.array([[1.0, 0.0], [-2.54, 0.0]], np.float32))[0].tolist()
    [[50, 0], [-127, 0]]
    """
    scales = np.maximum(np.abs(weight).max(axis=0) / 127.0, TINY).astype(np.float32)
    return np.rint(weight / scales).astype(np.int8), scales


def _put_instead(graph: ir.Graph, old: ir.Node, new: list[ir.Node]) -> None:
    ir.convenience.replace_nodes_and_values(graph, old, [old], new, [old.outputs[0]], [new[-1].outputs[0]])


def _shared(graph: ir.Graph, name: str, array: np.ndarray | np.generic) -> ir.Value:
    """A small constant of the pass, made once per graph."""
    name = f"int8.{name}"
    return graph.initializers[name] if name in graph.initializers else add_initializer(graph, name, np.asarray(array))
