"""Let each call choose for how many leading tokens the last layer is computed: a CLS vector needs the first alone.

Keys and values of the last layer are of all tokens. Its queries, and everything behind its attention, go row by row:

    x[:, :kept_tokens]               is what the query projection and the residual sum read of the layer's input x
    attention_mask[:, :kept_tokens]  and the same of input_ids are what shapes are taken of and heads multiply with

`kept_tokens` is a graph input with a default, all tokens, so whoever does not know it feeds two inputs as before. With
1, `dense_vecs` (a reranker's `logits`) are the same and the other outputs are those of one token. Any other pooling
reads every row: such a graph is left alone.
"""

import re
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from m3_export.graph.passes.flash_attention import match_attention
from m3_export.graph.passes.matching import add_initializer, constant, made_by, only_made_by, perm_of, scalar
from m3_runtime.engines import KEPT_TOKENS

# More than any text has. Not the largest int64: OpenVINO would see a slice that never cuts anything, and drop it.
ALL_TOKENS = 1 << 30
KEPT = "kept"  # the dynamic axis of what was narrowed

ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Relu", "Gelu", "Clip", "Tanh"})
OVER_LAST_AXIS = frozenset({"Softmax", "LayerNormalization", "ReduceL2", "Squeeze"})
# What may lie between the graph's inputs and an operand that follows the rows: a shape, or something per token.
FOR_SHAPES = frozenset({"Shape", "Concat"})
FOR_TOKENS = frozenset({"Cast", "Equal", "Not", "Unsqueeze", "Slice"})


@dataclass(frozen=True)
class Tail:
    """What is computed row by row: the last layer's input, and all nodes from its query projection on, in order."""

    x: ir.Value
    tokens: str
    nodes: tuple[ir.Node, ...]
    values: frozenset[ir.Value]

    def outside(self, node: ir.Node) -> list[tuple[int, ir.Value]]:
        """Operands that have to follow the rows: not made in the tail, not constant, not the same for every row."""
        return [
            (index, value)
            for index, value in enumerate(node.inputs)
            if value is not None
            and value not in self.values
            and value.const_value is None
            and not (node.op_type == "MatMul" and index == 1)  # keys and values: of all tokens
            and not (value.shape is not None and len(value.shape) > 2 and value.shape[1] == 1)  # the mask of keys
        ]


class KeepLastLayerRows(ir.passes.InPlacePass):
    """Runs on the portable graph, before the fusions, on graphs with CLS pooling."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`."""
        tail = _match(model.graph)
        if tail is not None:
            _narrow(model.graph, tail)
        return ir.passes.PassResult(model, modified=tail is not None)


def _match(graph: ir.Graph) -> Tail | None:
    attentions = [match_attention(node) for node in graph if node.op_type == "Softmax" and not node.domain]
    last = attentions[-1] if attentions and KEPT_TOKENS not in graph.initializers else None
    query = only_made_by(last.query, "MatMul") if last else None
    x = query.inputs[0] if query else None
    tokens = x.shape[1] if x is not None and x.shape is not None and len(x.shape) == 3 else None
    if query is None or x is None or not isinstance(tokens, ir.SymbolicDim) or tokens.value is None:
        return None
    tail = _tail(graph, x, tokens.value, query)
    if not all(_is_row_by_row(node, tail) and _can_follow(node, tail) for node in tail.nodes):
        return None
    return tail if any(map(_takes_first_row, tail.nodes)) else None


def _tail(graph: ir.Graph, x: ir.Value, tokens: str, query: ir.Node) -> Tail:
    nodes, values = [query], set(query.outputs)
    for node in graph:
        if any(value in values for value in node.inputs):
            nodes.append(node)
            values.update(node.outputs)
    return Tail(x, tokens, tuple(nodes), frozenset(values))


def _is_row_by_row(node: ir.Node, tail: Tail) -> bool:
    """Whether a row of the result depends on the same row of the operands alone."""
    if node.domain:
        return False
    match node.op_type:
        case "MatMul":
            return node.inputs[1] not in tail.values
        case "Transpose":
            return perm_of(node) == (0, 2, 1, 3)  # heads before tokens, and back
        case "Gather":
            return _takes_first_row(node)
        case "Slice":  # ColBERT's rows, from the second token on
            return len(node.inputs) > 3 and _is_vector_of(node.inputs[1], 1) and _is_vector_of(node.inputs[3], 1)
        case op_type if op_type in OVER_LAST_AXIS:
            return _last_axis_only(node)
        case op_type:
            return op_type in ELEMENTWISE or op_type == "Reshape"


def _takes_first_row(node: ir.Node) -> bool:
    """CLS pooling: the first row of what the last layer gives."""
    if node.op_type != "Gather" or made_by(node.inputs[0], "LayerNormalization") is None:
        return False
    shape, axis = node.inputs[0].shape, node.attributes.get("axis")
    is_row = shape is not None and len(shape) == 3 and axis is not None and axis.as_int() == 1
    return is_row and scalar(node.inputs[1]) == 0


def _last_axis_only(node: ir.Node) -> bool:
    if node.op_type in ("Softmax", "LayerNormalization"):
        return "axis" not in node.attributes or node.attributes["axis"].as_int() == -1
    return len(node.inputs) == 2 and _is_vector_of(node.inputs[1], -1)


def _is_vector_of(value: ir.Value | None, number: int) -> bool:
    array = constant(value)
    return array is not None and array.tolist() == [number]


def _can_follow(node: ir.Node, tail: Tail) -> bool:
    """Whether every operand from outside is the layer's input, or easily made of the graph's inputs once more."""
    between = FOR_SHAPES if node.op_type == "Reshape" else FOR_TOKENS
    return all(value is tail.x or _is_made_by(value, between) for _, value in tail.outside(node))


def _is_made_by(value: ir.Value | None, op_types: frozenset[str]) -> bool:
    node = value.producer() if value is not None else None
    if value is None or node is None:
        return value is not None
    return not node.domain and node.op_type in op_types and all(_is_made_by(v, op_types) for v in node.inputs)


def _narrow(graph: ir.Graph, tail: Tail) -> None:
    following = _Following(graph, tail)
    for node in tail.nodes:
        for index, value in tail.outside(node):
            node.replace_input_with(index, following.of(value, node))
        for output in node.outputs:
            _rename_axis(output, tail.tokens)


class _Following:
    """What follows the rows, each made once: the layer's input and the graph's, sliced, and what comes of them."""

    def __init__(self, graph: ir.Graph, tail: Tail) -> None:
        self._graph = graph
        self._tail = tail
        self._known: dict[ir.Value, ir.Value] = {}
        kept = add_initializer(graph, KEPT_TOKENS, np.array([ALL_TOKENS], np.int64))
        graph.inputs.append(kept)  # an initializer that is an input too: a default that callers may replace
        first = add_initializer(graph, f"{KEPT_TOKENS}.first", np.array([0], np.int64))
        axis = add_initializer(graph, f"{KEPT_TOKENS}.axis", np.array([1], np.int64))
        self._range = (first, kept, axis)

    def of(self, value: ir.Value, before: ir.Node) -> ir.Value:
        """The value for the kept tokens; its nodes are put in front of `before`."""
        if value.const_value is not None:
            return value
        if value not in self._known:
            node = self._node(value, value.producer(), before)
            result = node.outputs[0]
            result.name, result.shape, result.dtype = f"{value.name}.{KEPT}", value.shape, value.dtype
            _rename_axis(result, self._tail.tokens)
            self._graph.insert_before(before, [node])
            self._known[value] = result
        return self._known[value]

    def _node(self, value: ir.Value, made_by_node: ir.Node | None, before: ir.Node) -> ir.Node:
        name = f"{value.name}.{KEPT}"
        if value is self._tail.x or made_by_node is None:
            return ir.node("Slice", inputs=[value, *self._range], name=name)
        inputs = [self.of(v, before) for v in made_by_node.inputs if v is not None]
        return ir.Node("", made_by_node.op_type, inputs, made_by_node.attributes.values(), name=name)


def _rename_axis(value: ir.Value, tokens: str) -> None:
    """The first axis that goes by tokens gets another name: runtimes take axes of one name to be of one length."""
    dims = [] if value.shape is None else list(value.shape)
    for index, dim in enumerate(dims):
        name = dim.value if isinstance(dim, ir.SymbolicDim) else None
        if name is not None and re.search(rf"\b{re.escape(tokens)}\b", name):
            dims[index] = re.sub(rf"\b{re.escape(tokens)}\b", KEPT, name)
            value.shape = ir.Shape(dims)
            return
