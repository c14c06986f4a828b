"""INT8 for ONNX Runtime: what is quantized, how far off it is, and that neighbours do not matter."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graphs import floats, graph_of, operators, run, run_int8
from onnx_ir.passes.common import RemoveUnusedNodesPass
from test_graph import padded, session_of, texts_of

from m3_export.graph import passes
from m3_export.plan.plan import Kind, Precision, Projection, Scheme, projections
from m3_export.quantize.onnx_int8 import QuantizeProjections
from m3_export.quantize.projection import (
    InputStatistics,
    QuantizedProjection,
    fake_quantize,
    quantize_projection,
)

DYNAMIC = Scheme(Precision.DYNAMIC)
SMOOTHED, OUTLIERS_IN_FLOAT = replace(DYNAMIC, smoothing=0.5), replace(DYNAMIC, float_columns=4)


def quantized_weight(
    weight: np.ndarray, kind: Kind = Kind.FFN_IN, scheme: Scheme = DYNAMIC, seed: int = 5
) -> QuantizedProjection:
    """What calibration on noise makes of a weight, without what it adds to the bias."""
    rows = torch.from_numpy(floats(50, len(weight), seed=seed))
    rows[:, :2] *= 20
    inputs = InputStatistics(rows.amin(0), rows.amax(0), rows, after_gelu=kind is Kind.FFN_OUT)
    found = quantize_projection(scheme, inputs, torch.from_numpy(weight), group=0)
    return replace(found, shift=torch.zeros_like(found.shift))


def quantized(model: ir.Model, found: dict[Projection, QuantizedProjection]) -> ir.Model:
    return ir.passes.Sequential(QuantizeProjections(found), RemoveUnusedNodesPass())(model).model


def projection(weight: np.ndarray, before: str = "", reads: str = "x", kind: Kind = Kind.FFN_IN) -> ir.Model:
    text = f"g (float[B,T,64] x) => (float[B,T,32] y) {{ {before} y = MatMul({reads}, w) }}"
    model = graph_of(text, w=weight)
    model.graph.initializers["w"].name = f"layers.0.{kind}.weight"
    return model


def int8_of(weight: np.ndarray, kind: Kind = Kind.FFN_IN, **graph: str) -> ir.Model:
    return quantized(projection(weight, kind=kind, **graph), {Projection(0, kind): quantized_weight(weight, kind)})


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_close_to_float_at_any_scale(scale):
    weight, x = floats(64, 32, seed=1), floats(2, 5, 64) * np.float32(scale)
    got = run_int8(int8_of(weight), x=x)[0]
    error = np.linalg.norm(got - x @ weight) / np.linalg.norm(x @ weight)
    assert error < 0.015


@pytest.mark.parametrize("scheme", [DYNAMIC, SMOOTHED, OUTLIERS_IN_FLOAT], ids=str)
@pytest.mark.parametrize("kind", [Kind.FFN_IN, Kind.FFN_OUT, Kind.ATTENTION_OUT])
def test_the_engine_computes_what_the_planner_simulates(kind, scheme):
    weight, x = floats(64, 32, seed=1), np.maximum(floats(2, 5, 64), -0.16)
    found = quantized_weight(weight, kind, scheme)
    wanted = fake_quantize(found, 0, after_gelu=kind is Kind.FFN_OUT)(torch.from_numpy(x)).numpy()
    got = run_int8(quantized(projection(weight, kind=kind), {Projection(0, kind): found}), x=x)[0]
    # a value on the edge of a step may fall to either side: one step of one channel, not more
    assert np.abs(got - wanted).max() < 0.02 * np.abs(wanted).max()
    assert np.median(np.abs(got - wanted)) < 1e-6 * np.abs(wanted).max()


def test_a_row_of_zeros_gives_zeros():
    assert not run_int8(int8_of(floats(64, 32)), x=np.zeros((1, 3, 64), np.float32))[0].any()


def test_an_outlier_row_does_not_coarsen_its_neighbours():
    model, calm = int8_of(floats(64, 32, seed=1)), floats(1, 4, 64)
    loud = np.concatenate([calm, 1e4 * floats(1, 4, 64, seed=7)])
    np.testing.assert_array_equal(run_int8(model, x=loud)[0][:1], run_int8(model, x=calm)[0])


def test_after_gelu_the_steps_are_finer():
    """Against the exact product, the asymmetric quantizer beats the symmetric one on what Gelu gives."""
    weight, x = floats(64, 32, seed=1), 3 * floats(4, 16, 64)
    gelu = {"before": "a = Gelu(x)", "reads": "a"}
    exact = run(projection(weight, **gelu), x=x)[0]
    activations = run(graph_of("g (float[B,T,64] x) => (float[B,T,64] a) { a = Gelu(x) }"), x=x)[0]
    asymmetric = run_int8(int8_of(weight, kind=Kind.FFN_OUT, **gelu), x=x)[0]
    symmetric = run_int8(int8_of(weight), x=activations)[0]
    assert np.abs(asymmetric - exact).mean() < 0.8 * np.abs(symmetric - exact).mean()


def test_gelu_at_its_minimum_is_not_clipped():
    x = np.full((1, 1, 64), -0.7518, np.float32)  # where x Φ(x) is lowest
    weight, gelu = np.ones((64, 32), np.float32), {"before": "a = Gelu(x)", "reads": "a"}
    got = run_int8(int8_of(weight, kind=Kind.FFN_OUT, **gelu), x=x)[0]
    np.testing.assert_allclose(got, run(projection(weight, **gelu), x=x)[0], rtol=0.01)


@pytest.fixture(scope="module")
def whole(portable_graph, tmp_path_factory):
    """A whole fused graph, all but one projection quantized, with its float form; both as sessions."""
    fused = passes.for_onnxruntime(portable_graph())
    model = quantized(fused.clone(), {found: quantized_in(fused, found) for found in projections(2) if found != SPARED})
    sessions = [session_of(m, tmp_path_factory.mktemp("int8")) for m in (fused, model)]
    return model, *sessions


SPARED = Projection(1, Kind.FFN_IN)


def quantized_in(model: ir.Model, found: Projection) -> QuantizedProjection:
    names = [f"layers.{found.layer}.{name}.weight" for name in found.kind.weights]
    weights = [model.graph.initializers[name].const_value.numpy() for name in names]
    return quantized_weight(np.concatenate(weights, axis=1))


def test_what_is_planned_is_quantized_and_nothing_else(whole):
    model, *_ = whole
    found = operators(model)
    assert found["MatMulIntegerToFloat"] == 11
    # three in a whole layer and the one layer's: query, key and value share theirs, but where only some rows are
    # queried
    assert found["QuantizeLinear"] == 8
    assert found["Expand"] == 4  # zero points after Gelu and elsewhere, for all tokens and for those that are kept
    assert found["MatMul"] == 3  # the heads and the one that was spared
    floats_left = {v.name for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT and v.name}
    assert {name for name in floats_left if name.endswith(("query.weight", "ffn_in.weight", "words"))} == {
        "layers.1.ffn_in.weight"
    }


def test_whole_graph_is_close_to_float(whole):
    _, exact, int8 = whole
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
    result = QuantizeProjections({Projection(0, Kind.FFN_IN): quantized_weight(floats(64, 32))})(model)
    assert not result.modified
    assert operators(result.model) == {"MatMul": 1}
