"""LayerNormalization of a residual sum → SkipLayerNormalization, and what looks like it but is not."""

import numpy as np
import pytest
from graphs import floats, graph_of, operators, run
from onnx_ir.passes.common import RemoveUnusedNodesPass

from m3_export.passes.skip_layer_norm import FuseSkipLayerNorm

WEIGHTS = {"gamma": floats(8, seed=1), "beta": floats(8, seed=2)}
BIAS = {**WEIGHTS, "bias": floats(8, seed=3)}
NORM = "y = LayerNormalization<epsilon=0.00001>(t, gamma, beta)"
TWO = "g (float[B,T,8] x, float[B,T,8] skip) => (float[B,T,8] y)"


def fused(text: str, **initializers: np.ndarray):
    result = FuseSkipLayerNorm()(graph_of(text, **initializers))
    RemoveUnusedNodesPass()(result.model)
    return result


@pytest.mark.parametrize(
    ("body", "initializers"),
    [
        ("t = Add(x, skip)", WEIGHTS),
        ("s = Add(x, bias)  t = Add(s, skip)", BIAS),
        ("s = Add(bias, x)  t = Add(skip, s)", BIAS),
    ],
)
def test_fuses_sum_and_bias(body, initializers):
    text = f"{TWO} {{ {body}  {NORM} }}"
    inputs = {"x": floats(2, 5, 8), "skip": floats(2, 5, 8, seed=9)}
    expected = run(graph_of(text, **initializers), **inputs)[0]
    result = fused(text, **initializers)
    assert result.modified
    assert operators(result.model) == {"SkipLayerNormalization": 1}
    np.testing.assert_allclose(run(result.model, **inputs)[0], expected, atol=1e-5)


def test_keeps_the_epsilon():
    text = f"{TWO} {{ t = Add(x, skip)  y = LayerNormalization<epsilon=0.5>(t, gamma, beta) }}"
    inputs = {"x": floats(1, 3, 8), "skip": floats(1, 3, 8, seed=9)}
    expected = run(graph_of(text, **WEIGHTS), **inputs)[0]
    np.testing.assert_allclose(run(fused(text, **WEIGHTS).model, **inputs)[0], expected, atol=1e-5)


def test_a_bias_that_others_read_stays_outside():
    text = (
        "g (float[B,T,8] x, float[B,T,8] skip) => (float[B,T,8] y, float[B,T,8] z) "
        f"{{ s = Add(x, bias)  z = Neg(s)  t = Add(s, skip)  {NORM} }}"
    )
    inputs = {"x": floats(1, 3, 8), "skip": floats(1, 3, 8, seed=9)}
    expected = run(graph_of(text, **BIAS), **inputs)
    result = fused(text, **BIAS)
    assert operators(result.model) == {"Add": 1, "Neg": 1, "SkipLayerNormalization": 1}
    for got, wanted in zip(run(result.model, **inputs), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("why", "text", "initializers"),
    [
        ("a plain bias is no residual", f"g (float[B,T,8] x) => (float[B,T,8] y) {{ t = Add(x, bias)  {NORM} }}", BIAS),
        (
            "a broadcast sum is no residual",
            f"g (float[B,T,8] x, float[B,1,8] skip) => (float[B,T,8] y) {{ t = Add(x, skip)  {NORM} }}",
            WEIGHTS,
        ),
        (
            "the sum is read elsewhere too",
            "g (float[B,T,8] x, float[B,T,8] skip) => (float[B,T,8] y, float[B,T,8] z) "
            f"{{ t = Add(x, skip)  {NORM}  z = Neg(t) }}",
            WEIGHTS,
        ),
        (
            "normalised over two axes",
            "g (float[B,4,8] x, float[B,4,8] skip) => (float[B,4,8] y) "
            "{ t = Add(x, skip)  y = LayerNormalization<axis=1>(t, gamma, beta) }",
            {"gamma": floats(4, 8), "beta": floats(4, 8)},
        ),
        (
            "no sum at all",
            "g (float[B,T,8] x) => (float[B,T,8] y) { t = Neg(x)  y = LayerNormalization(t, gamma, beta) }",
            WEIGHTS,
        ),
    ],
)
def test_leaves_near_misses_alone(why, text, initializers):
    before = operators(graph_of(text, **initializers))
    result = fused(text, **initializers)
    assert not result.modified, why
    assert operators(result.model) == before
