"""The encoder without heads: what is kept, what goes, and graphs that have none to keep."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import floats, graph_of, operators, run
from test_graph import padded, texts_of
from test_pass_last_layer_rows import CONSTANTS, LAYER, LENGTHS, inputs, narrowed

from m3_export.graph import passes
from m3_export.graph.passes.last_hidden_state import LAST_HIDDEN_STATE, KeepLastHiddenState
from m3_runtime.bundle.manifest import Pooling


def graph() -> ir.Model:
    return graph_of(LAYER, **CONSTANTS)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("narrow", [False, True], ids=["plain", "kept_tokens"])
def test_the_rows_that_the_heads_read(lengths, narrow):
    batch = inputs(*lengths)
    dense, *_ = run(graph(), **batch)
    (rows,) = run(passes.encoder_alone(narrowed().model if narrow else graph()), **batch)
    assert rows.shape == (*batch["ids"].shape, 8)
    np.testing.assert_allclose(rows[:, 0], dense, atol=1e-6)


@pytest.mark.parametrize("narrow", [False, True], ids=["plain", "kept_tokens"])
def test_heads_and_their_weights_go(narrow):
    alone = passes.encoder_alone(narrowed().model if narrow else graph())
    assert [value.name for value in alone.graph.outputs] == [LAST_HIDDEN_STATE]
    assert [value.name for value in alone.graph.inputs] == ["ids", "mask", "x0"]
    assert not operators(alone).keys() & {"Gather", "Relu", "Equal", "Not"}
    assert not alone.graph.initializers.keys() & {"ws", "bs", "wc", "unused_id"}


def test_the_axis_is_that_of_the_tokens_again():
    alone = passes.encoder_alone(narrowed().model)
    assert str(alone.graph.outputs[0].shape) == "[B,T,8]"


@pytest.mark.parametrize(
    ("options", "pooling"), [({}, Pooling.CLS), ({"layers": 1, "pooling": Pooling.MEAN}, Pooling.MEAN)]
)
def test_a_real_graph_with_everything_fused(portable_graph, options, pooling):
    batch = padded(texts_of(9, 4))
    finished = passes.for_onnxruntime(portable_graph(**options))
    assert "MultiHeadAttention" in operators(finished)
    dense = run(finished, **batch)[0]
    (rows,) = run(passes.encoder_alone(finished.clone()), **batch)
    weights = batch["attention_mask"][:, :, None]
    pooled = rows[:, 0] if pooling is Pooling.CLS else (rows * weights).sum(axis=1) / weights.sum(axis=1)
    np.testing.assert_allclose(pooled / np.linalg.norm(pooled, axis=1, keepdims=True), dense, atol=1e-6)


def test_a_graph_without_normalisation_is_left_alone():
    model = graph_of("g (float[B,T,8] x) => (float[B,T,8] y) { y = Relu(x) }", w=floats(8))
    result = KeepLastHiddenState()(model)
    assert not result.modified
    assert [value.name for value in result.model.graph.outputs] == ["y"]
