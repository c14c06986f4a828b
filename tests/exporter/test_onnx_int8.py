"""INT8 for ONNX Runtime: what is quantized, how far off it is, and that neighbours do not matter."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import floats, graph_of, operators, run
from onnx_ir.passes.common import RemoveUnusedNodesPass
from test_graph import UNUSED, checkpoint_of, padded, session_of, texts_of

from m3_export import passes
from m3_export.model import M3Model
from m3_export.quantize.onnx_int8 import QuantizeProjections, quantize_columns
from m3_export.trace import trace

NAME = "layers.0.query.weight"


def quantized(model: ir.Model) -> tuple[ir.Model, QuantizeProjections]:
    quantize = QuantizeProjections()
    return ir.passes.Sequential(quantize, RemoveUnusedNodesPass())(model).model, quantize


def projection(weight: np.ndarray, before: str = "", reads: str = "x") -> ir.Model:
    text = f"g (float[B,T,64] x) => (float[B,T,32] y) {{ {before} y = MatMul({reads}, w) }}"
    model = graph_of(text, w=weight)
    model.graph.initializers["w"].name = NAME
    return model


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_close_to_float_at_any_scale(scale):
    weight, x = floats(64, 32, seed=1), floats(2, 5, 64) * np.float32(scale)
    model, quantize = quantized(projection(weight))
    got = run(model, x=x)[0]
    error = np.linalg.norm(got - x @ weight) / np.linalg.norm(x @ weight)
    assert error < 0.015
    assert [line.projection for line in quantize.plan] == ["layer.0.query"]


def test_a_row_of_zeros_gives_zeros():
    model, _ = quantized(projection(floats(64, 32)))
    assert not run(model, x=np.zeros((1, 3, 64), np.float32))[0].any()


def test_an_outlier_row_does_not_coarsen_its_neighbours():
    model, _ = quantized(projection(floats(64, 32, seed=1)))
    calm = floats(1, 4, 64)
    loud = np.concatenate([calm, 1e4 * floats(1, 4, 64, seed=7)])
    np.testing.assert_array_equal(run(model, x=loud)[0][:1], run(model, x=calm)[0])


def test_after_gelu_the_steps_are_finer():
    """Against the exact product, the asymmetric quantizer beats the symmetric one on what Gelu gives."""
    weight, x = floats(64, 32, seed=1), 3 * floats(4, 16, 64)
    gelu = projection(weight, before="a = Gelu(x)", reads="a")
    exact = run(gelu, x=x)[0]
    activations = run(graph_of("g (float[B,T,64] x) => (float[B,T,64] a) { a = Gelu(x) }"), x=x)[0]
    asymmetric = run(quantized(gelu)[0], x=x)[0]
    symmetric = run(quantized(projection(weight))[0], x=activations)[0]
    assert np.abs(asymmetric - exact).mean() < 0.8 * np.abs(symmetric - exact).mean()


def test_gelu_at_its_minimum_is_not_clipped():
    x = np.full((1, 1, 64), -0.7518, np.float32)  # where x Φ(x) is lowest
    weight = np.ones((64, 32), np.float32)
    gelu = projection(weight, before="a = Gelu(x)", reads="a")
    np.testing.assert_allclose(run(quantized(gelu)[0], x=x)[0], run(gelu, x=x)[0], rtol=0.01)


def test_columns_use_the_whole_range_and_zero_columns_survive():
    weight = floats(64, 5)
    weight[:, 2] = 0
    values, scales = quantize_columns(weight)
    assert values.dtype == np.int8
    assert np.abs(values).max(axis=0).tolist() == [127, 127, 0, 127, 127]
    np.testing.assert_allclose(values * scales, weight, atol=scales.max() / 2 * 1.001)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A whole fused graph, quantized; the plan; both as sessions."""
    fused = passes.for_onnxruntime(passes.portable(trace(M3Model(checkpoint_of(), UNUSED))))
    model, quantize = quantized(fused.clone())
    sessions = [session_of(m, tmp_path_factory.mktemp("int8")) for m in (fused, model)]
    return model, quantize.plan, *sessions


def test_all_six_projections_of_every_layer_and_the_embedding(whole):
    model, plan, *_ = whole
    names = {line.projection for line in plan}
    kinds = ("query", "key", "value", "attention_out", "ffn_in", "ffn_out")
    assert names == {"words", *(f"layer.{i}.{kind}" for i in range(2) for kind in kinds)}
    found = operators(model)
    assert found["MatMulIntegerToFloat"] == 12
    assert found["QuantizeLinear"] == 8  # query, key and value share theirs
    assert found["MatMul"] == 2  # the heads
    floats_left = [v.name for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT and v.name]
    assert not [name for name in floats_left if name.endswith(("query.weight", "ffn_in.weight", "words"))]


def test_whole_graph_is_close_to_float(whole):
    *_, exact, int8 = whole
    batch = padded(texts_of(20, 20, 20))
    wanted, got = exact.run(["dense_vecs"], batch)[0], int8.run(["dense_vecs"], batch)[0]
    assert (wanted * got).sum(axis=1).min() > 0.995


def test_the_same_text_alone_and_among_equals(whole):
    *_, int8 = whole
    texts = texts_of(20, 20, 20)
    together = int8.run(None, padded(texts))
    for i, text in enumerate(texts):
        for alone, batched in zip(int8.run(None, padded([text])), together, strict=True):
            np.testing.assert_allclose(alone[0], batched[i], atol=2e-3)


def test_other_matmuls_stay_float():
    model = graph_of("g (float[B,T,64] x) => (float[B,T,32] y) { y = MatMul(x, w) }", w=floats(64, 32))
    result = QuantizeProjections()(model)
    assert not result.modified
    assert operators(result.model) == {"MatMul": 1}
