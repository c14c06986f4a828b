"""Several short texts in one row, each with the very bits that it has alone.

`attention_mask` numbers the texts of a packed row: 1, 2, 3 …, in any arrangement that keeps each text's own order; 0 is
padding. A token attends to the tokens of its own text, positions count within it, and it has a dense vector of its own.

    scores = q kᵀ · scale + (0 within a text, else -1e9)
    p = exp(scores - max)
    context = p v ÷ p 1

A matrix product adds up in the order of keys, and a key of another text or of padding adds an exact zero. So neither
other texts nor padding change a bit. A softmax adds up in vector lanes, by position in the row, and its bits change.

Long texts gain nothing from packing, and for them nothing is as fast as an engine's fused attention, with a mask where
texts are padded, without one where they are not. So there are three attentions without weights, and shapes choose:
queries go to one of them, the others get matrices without rows. No `If`: OpenVINO would copy all that goes in and out,
and infer the shapes of each branch again.

    packed_texts (N, 2)  row and column of the token that stands for each packed text, in the order of `dense_vecs`
    whole_rows (0 or 1)  an entry: each row is a text, and all have one length
    padded_rows (0 or 1) an entry: each row is a text, padded on the right

By default rows are padded ones, and a mask of ones and zeros is all that has to be known.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from m3_export.graph.model import MASKED_SCORE
from m3_export.graph.passes.flash_attention import Attention, match_attention
from m3_export.graph.passes.matching import made_by, replace, split_operands
from m3_runtime.engines import KEPT_TOKENS, PACKED_TEXTS, PADDED_ROWS, WHOLE_ROWS

PACKED_TOKENS = 64
"""Texts of at most so many tokens are packed: the fused attention is no faster for them."""

POSITIONS = "positions"  # the table of position rows
TEXTS = "texts"  # the dynamic axis of dense vectors
INT64, FLOAT32 = ir.DataType.INT64, ir.DataType.FLOAT

ONES = 16


class PackRows(ir.passes.InPlacePass):
    """Runs on the portable graph, after every pass that looks for attention."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """See `onnx_ir.passes.InPlacePass`.

        Raises:
            ValueError: the graph is not M3Model's.
        """
        graph = model.graph
        softmaxes = [node for node in graph if node.op_type == "Softmax"]
        attentions = [found for found in map(match_attention, softmaxes) if found is not None]
        if not attentions or len(attentions) < len(softmaxes):
            raise ValueError("an attention of the graph is not one that can be packed")
        mask = attentions[0].mask
        readers = list(mask.uses())
        inputs = _Inputs(graph, mask)
        rows = _Rows(graph, inputs, mask, "rows")
        _place(graph, inputs, rows)
        for number, attention in enumerate(attentions[:-1]):
            _choose_attention(graph, attention, rows, f"attention.{number}")
        if KEPT_TOKENS in graph.initializers:
            rows = _Rows(graph, inputs, _kept(graph, mask), "rows.kept")
        _choose_attention(graph, attentions[-1], rows, f"attention.{len(attentions) - 1}")
        _pool(graph, inputs, rows)
        _read_as_ones(graph, mask, readers)
        graph.sort()
        return ir.passes.PassResult(model, modified=True)


class _Ops:
    """Records nodes and names them after their part of the graph."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.nodes: list[ir.Node] = []

    def __call__(self, op_type: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        """Record a node; gives its output."""
        name = f"{self._name}.{len(self.nodes)}"
        node = ir.node(op_type, inputs=list(inputs), attributes=attributes, name=name)
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, values: float | list[int] | list[float]) -> ir.Value:
        """A constant of int64 or float32."""
        array = np.array(values)
        return self("Constant", value=ir.tensor(array.astype(np.float32 if array.dtype.kind == "f" else np.int64)))

    def positions(self, matrix: ir.Value, axis: int) -> ir.Value:
        """0, 1, 2 … along an axis of a matrix, as a row or a column. Not Range: its length would depend on data."""
        line = self("Slice", matrix, self.constant([0]), self.constant([1]), self.constant([1 - axis]))
        ones = self("Cast", self("Equal", line, line), to=INT64)
        return self("CumSum", ones, self.constant(axis), exclusive=1)

    def if_any(self, positions: ir.Value, column: ir.Value) -> ir.Value:
        """Positions as a vector, where the column (0 or 1, 1) has an entry; else an empty one."""
        table = self("Add", self("Reshape", positions, self.constant([1, -1])), self("Mul", column, self.constant(0)))
        return self("Reshape", table, self.constant([-1]))


class _Inputs:
    """The inputs by whose shapes a caller says what the rows are. One of three has an entry, the others are empty.

    Attributes:
        numbers: (B, T), the mask.
        texts: (N, 2), `packed_texts`.
        packed, whole, padded: (0 or 1, 1).
    """

    def __init__(self, graph: ir.Graph, numbers: ir.Value) -> None:
        """Give the graph its inputs."""
        self.numbers = numbers
        self.texts = ir.Value(name=PACKED_TEXTS, shape=ir.Shape(["packed", 2]), type=ir.TensorType(INT64))
        whole = ir.Value(name=WHOLE_ROWS, shape=ir.Shape(["whole"]), type=ir.TensorType(INT64))
        padded = ir.Value(name=PADDED_ROWS, shape=ir.Shape(["padded"]), type=ir.TensorType(INT64))
        graph.inputs.extend([self.texts, whole, padded])
        ops = _Ops("rows.inputs")
        first = ops("Slice", self.texts, ops.constant([0]), ops.constant([1]), ops.constant([0]))
        self.packed = ops("ReduceSum", first, ops.constant([1]))
        self.whole, self.padded = (ops("Reshape", rows, ops.constant([-1, 1])) for rows in (whole, padded))
        graph.extend(ops.nodes)


class _Rows:
    """Queries and keys of the attentions. P query tokens are packed, all or none of them; so are K key tokens.

    Attributes:
        packed, whole, padded: positions of the query tokens, of each kind.
        keys, padded_keys: positions of the packed, and of the padded key tokens.
        same: (B, P, K) boolean, whether a query token and a key token are of one text.
        scores: (B, 1, P, K), what is added to the scores: 0 where they are, else a large negative.
        ones: (1, 1, K, 16), sums up a row of K. A product with one column might be computed in another order.
    """

    def __init__(self, graph: ir.Graph, inputs: _Inputs, queries: ir.Value, name: str) -> None:
        """Record what is known once for all layers; `queries` are query tokens' numbers, (B, T) or fewer columns."""
        ops = _Ops(name)
        positions = ops.positions(queries, axis=1)
        kinds = (inputs.packed, inputs.whole, inputs.padded)
        self.packed, self.whole, self.padded = (ops.if_any(positions, kind) for kind in kinds)
        every = ops.positions(inputs.numbers, axis=1)
        self.keys, self.padded_keys = ops.if_any(every, inputs.packed), ops.if_any(every, inputs.padded)
        of_keys = ops("Unsqueeze", ops("Gather", inputs.numbers, self.keys, axis=1), ops.constant([1]))
        of_queries = ops("Unsqueeze", ops("Gather", queries, self.packed, axis=1), ops.constant([2]))
        self.same = ops("And", ops("Equal", of_queries, of_keys), ops("Greater", of_keys, ops.constant(0)))
        scores = ops("Where", self.same, ops.constant(0.0), ops.constant(MASKED_SCORE))
        self.scores = ops("Unsqueeze", scores, ops.constant([1]))
        column = ops("Mul", ops("Reshape", self.keys, ops.constant([1, 1, -1, 1])), ops.constant(0))
        self.ones = ops("Add", ops("Cast", column, to=FLOAT32), ops.constant([1.0] * ONES))
        graph.extend(ops.nodes)


def _kept(graph: ir.Graph, numbers: ir.Value) -> ir.Value:
    """The numbers of the tokens that the last layer computes."""
    ops = _Ops("numbers.kept")
    result = ops("Slice", numbers, ops.constant([0]), graph.initializers[KEPT_TOKENS], ops.constant([1]))
    graph.extend(ops.nodes)
    return result


def _read_as_ones(graph: ir.Graph, numbers: ir.Value, readers: Sequence[tuple[ir.Node, int]]) -> None:
    """Whoever read the mask reads 1 for a token, of whatever text."""
    ops = _Ops("mask")
    ones = ops("Min", numbers, ops.constant(1))
    graph.extend(ops.nodes)
    for node, index in readers:
        node.replace_input_with(index, ones)


def _place(graph: ir.Graph, inputs: _Inputs, rows: _Rows) -> None:
    """Count the positions of packed tokens within their texts."""
    table = next(node for node in graph if node.op_type == "Gather" and node.inputs[0].name == POSITIONS)
    plain = table.inputs[1]
    total = made_by(plain, "Add")
    product = split_operands(total, "Mul") if total else None
    count = split_operands(product[0], "CumSum") if product else None
    if product is None or count is None:
        raise ValueError("the graph does not count positions as M3Model does")
    pad_id, is_token = product[1], count[1]
    ops = _Ops("rows.positions")
    unpacked = ops("Concat", rows.whole, rows.padded, axis=0)
    is_token = ops("Gather", is_token, rows.keys, axis=1)
    query, key = ops("Unsqueeze", rows.packed, ops.constant([1])), ops("Unsqueeze", rows.keys, ops.constant([0]))
    counted = ops("Cast", ops("And", rows.same, ops("GreaterOrEqual", query, key)), to=INT64)
    counted = ops("Mul", counted, ops("Unsqueeze", is_token, ops.constant([1])))
    rank = ops("ReduceSum", counted, ops.constant([2]), keepdims=0)
    packed = ops("Add", ops("Mul", rank, is_token), pad_id)
    positions = ops("Concat", ops("Gather", plain, unpacked, axis=1), packed, axis=1)
    graph.extend(ops.nodes)
    table.replace_input_with(1, positions)


def _choose_attention(graph: ir.Graph, found: Attention, rows: _Rows, name: str) -> None:
    """Let the queries of each kind of rows go to an attention of their own."""
    ops = _Ops(name)
    width = int(found.biased[0].shape[-1])
    heads, joined = ops.constant([0, 0, found.heads, width // found.heads]), ops.constant([0, 0, width])
    queries, keys, values = found.biased
    queries = ops("Mul", queries, ops.constant(float(found.scale)))  # here it is part of the projection

    def split(x: ir.Value, perm: Sequence[int]) -> ir.Value:
        return ops("Transpose", ops("Reshape", x, heads), perm=list(perm))

    def of(x: ir.Value, positions: ir.Value) -> ir.Value:
        return ops("Gather", x, positions, axis=1)

    def scores(queries: ir.Value, keys: ir.Value) -> ir.Value:
        return ops("MatMul", split(queries, (0, 2, 1, 3)), split(keys, (0, 2, 3, 1)))

    def context(parts: ir.Value, values: ir.Value, sums: ir.Value | None = None) -> ir.Value:
        product = ops("MatMul", parts, split(values, (0, 2, 1, 3)))
        product = ops("Div", product, sums) if sums else product
        return ops("Reshape", ops("Transpose", product, perm=[0, 2, 1, 3]), joined)

    # each attention has its transposes to itself: engines make one operator of them
    whole = context(ops("Softmax", scores(of(queries, rows.whole), keys), axis=-1), values)
    mask_scores = ops("Gather", found.mask_scores, rows.padded_keys, axis=3)
    masked = ops("Add", scores(of(queries, rows.padded), of(keys, rows.padded_keys)), mask_scores)
    padded = context(ops("Softmax", masked, axis=-1), of(values, rows.padded_keys))
    logits = ops("Add", scores(of(queries, rows.packed), of(keys, rows.keys)), rows.scores)
    parts = ops("Exp", ops("Sub", logits, ops("ReduceMax", logits, ops.constant([-1]))))
    sums = ops("Slice", ops("MatMul", parts, rows.ones), *map(ops.constant, ([0], [1], [3])))
    result = ops("Concat", whole, padded, context(parts, of(values, rows.keys), sums), axis=1)
    replace(graph, found.last, ops.nodes, result)


def _pool(graph: ir.Graph, inputs: _Inputs, rows: _Rows) -> None:
    """One dense vector, or score, for each row that is a text, and for each packed text."""
    hidden = [node for node in graph if node.op_type == "LayerNormalization"][-1].outputs[0]
    old = _pooled(graph.outputs[0])
    readers = list(old.uses())
    ops = _Ops("pool")
    source = hidden
    if made_by(old, "Div"):  # a mean
        weights = ops("Cast", rows.same, to=FLOAT32)
        seen = ops("Gather", hidden, rows.keys, axis=1)
        source = ops("Div", ops("MatMul", weights, seen), ops("ReduceSum", weights, ops.constant([2])))
    texts = ops.positions(inputs.numbers, axis=0)
    texts = ops("Concat", ops.if_any(texts, inputs.whole), ops.if_any(texts, inputs.padded), axis=0)
    plain = ops("Gather", old, texts, axis=0)
    result = ops("Concat", plain, ops("GatherND", source, inputs.texts), axis=0)
    graph.extend(ops.nodes)
    result.dtype, result.shape = FLOAT32, old.shape
    for node, index in readers:
        node.replace_input_with(index, result)
    if graph.outputs[0] is old:
        result.name, old.name = old.name, f"{old.name}.plain"
        graph.outputs[0] = result
    _count_texts(result)


def _count_texts(value: ir.Value) -> None:
    """The first axis of all that follows gets another name: runtimes take axes of one name to be of one length."""
    if value.shape is not None:
        value.shape = ir.Shape([TEXTS, *list(value.shape)[1:]])
    for node, _ in value.uses():
        for output in node.outputs:
            _count_texts(output)


def _pooled(output: ir.Value) -> ir.Value:
    """What a head reads of each text: the dense vectors before they are normalised, or what a classifier reads."""
    classifier = made_by(output, "Add")
    hidden = split_operands(classifier, "MatMul") if classifier else None
    tanh = made_by(hidden[0].inputs[0], "Tanh") if hidden else None
    if tanh is not None:
        return _pooled_by_classifier(tanh)
    division = made_by(output, "Div")
    if division is None or made_by(division.inputs[1], "Clip") is None:
        return output
    return division.inputs[0]


def _pooled_by_classifier(tanh: ir.Node) -> ir.Value:
    total = made_by(tanh.inputs[0], "Add")
    product = split_operands(total, "MatMul") if total else None
    pooled = product[0].inputs[0] if product else None
    if pooled is None:
        raise ValueError("the graph's classifier is not M3Model's")
    return pooled
