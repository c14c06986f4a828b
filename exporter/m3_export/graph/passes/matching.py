"""Queries on a graph that several passes need."""

from itertools import chain, count

import numpy as np
import onnx_ir as ir

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node of that type (in the standard domain) which produces the value, or None."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def only_made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Like `made_by`, and nothing else reads the value: the node may be fused away."""
    node = made_by(value, op_type)
    assert node is None or value is not None
    return node if node and len(value.uses()) == 1 and not value.is_graph_output() else None  # type: ignore[union-attr]


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The value's content if it is an initializer that no caller can replace, else None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """A constant of one element as a number, else None."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def is_vector(value: ir.Value | None) -> bool:
    """An initializer of one dimension: a bias, say. Its content is not read."""
    return value is not None and value.const_value is not None and len(value.const_value.shape) == 1


def split_operands(node: ir.Node, op_type: str) -> tuple[ir.Node, ir.Value] | None:
    """For a two-operand node: the operand that only this node reads and an `op_type` makes, and the other operand."""
    left, right = node.inputs
    for mine, other in ((left, right), (right, left)):
        found = only_made_by(mine, op_type)
        if found is not None and other is not None:
            return found, other
    return None


def split_bias(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """For `x + bias` read by one node only, with `bias` a constant vector: (x, bias)."""
    node = only_made_by(value, "Add")
    left, right = node.inputs if node else (None, None)
    for x, bias in ((left, right), (right, left)):
        if x is not None and bias is not None and is_vector(bias):
            return x, bias
    return None


def perm_of(node: ir.Node) -> tuple[int, ...]:
    """A Transpose's permutation."""
    return tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else ()


def replace(graph: ir.Graph, old: ir.Node, new: list[ir.Node], result: ir.Value) -> None:
    """Put `new` where `old` is; `result` takes over old's name and readers. What is no longer read is left behind.

    RemoveUnusedNodesPass sweeps up afterwards.
    """
    ir.convenience.replace_nodes_and_values(graph, old, [old], new, [old.outputs[0]], [result])


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new constant of the graph; a number is put behind a name that is taken."""
    names = chain([name], (f"{name}.{i}" for i in count(2)))
    free = next(n for n in names if n not in graph.initializers)
    value = ir.Value(name=free, const_value=ir.tensor(array, name=free))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def shift_bias(graph: ir.Graph, node: ir.Node, index: int, shift: np.ndarray, name: str) -> None:
    """Give a node an initializer of its own for its input `index`, plus an (N,) shift; equal ones may be one tensor."""
    bias = node.inputs[index]
    assert bias is not None
    shifted = (np.asarray(constant(bias), dtype=np.float64) + shift).astype(np.float32)
    node.replace_input_with(index, add_initializer(graph, name, shifted))
