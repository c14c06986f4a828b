"""Gelu(x + bias) → BiasGelu, and what looks like it but is not."""

import numpy as np
import pytest
from graphs import floats, graph_of, operators, run
from onnx_ir.passes.common import RemoveUnusedNodesPass

from m3_export.passes.bias_gelu import FuseBiasGelu

BIAS = floats(8, seed=1)


def fused(text: str, **initializers: np.ndarray):
    model = graph_of(text, **initializers)
    result = FuseBiasGelu()(model)
    RemoveUnusedNodesPass()(result.model)
    return result


@pytest.mark.parametrize("total", ["Add(x, bias)", "Add(bias, x)"])
def test_fuses_with_the_bias_on_either_side(total):
    text = f"g (float[B,T,8] x) => (float[B,T,8] y) {{ s = {total}  y = Gelu(s) }}"
    x = floats(2, 5, 8)
    expected = run(graph_of(text, bias=BIAS), x=x)[0]
    result = fused(text, bias=BIAS)
    assert result.modified
    assert operators(result.model) == {"BiasGelu": 1}
    np.testing.assert_allclose(run(result.model, x=x)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("why", "text", "initializers"),
    [
        (
            "the tanh approximation is another function",
            'g (float[B,T,8] x) => (float[B,T,8] y) { s = Add(x, bias)  y = Gelu<approximate="tanh">(s) }',
            {"bias": BIAS},
        ),
        (
            "the sum is read elsewhere too",
            "g (float[B,T,8] x) => (float[B,T,8] y, float[B,T,8] z) { s = Add(x, bias)  y = Gelu(s)  z = Neg(s) }",
            {"bias": BIAS},
        ),
        (
            "the sum is an output of the graph",
            "g (float[B,T,8] x) => (float[B,T,8] y, float[B,T,8] s) { s = Add(x, bias)  y = Gelu(s) }",
            {"bias": BIAS},
        ),
        (
            "both operands vary",
            "g (float[B,T,8] x, float[B,T,8] z) => (float[B,T,8] y) { s = Add(x, z)  y = Gelu(s) }",
            {},
        ),
        (
            "a constant of two dimensions is no bias",
            "g (float[B,T,8] x) => (float[B,T,8] y) { s = Add(x, bias)  y = Gelu(s) }",
            {"bias": floats(1, 8)},
        ),
        ("no sum at all", "g (float[B,T,8] x) => (float[B,T,8] y) { y = Gelu(x) }", {}),
    ],
)
def test_leaves_near_misses_alone(why, text, initializers):
    before = operators(graph_of(text, **initializers))
    result = fused(text, **initializers)
    assert not result.modified, why
    assert operators(result.model) == before
