"""LayerNormalization stays apart from the sum in front of it, whatever ONNX Runtime's optimiser would like."""

import numpy as np
import pytest
from graphs import floats, graph_of, operators, optimised, run

from m3_export.graph.passes.skip_layer_norm import PreventSkipLayerNorm

WEIGHTS = {"gamma": floats(8, seed=1), "beta": floats(8, seed=2)}
BIAS = {**WEIGHTS, "bias": floats(8, seed=3)}
NORM = "y = LayerNormalization<epsilon=0.00001>(t, gamma, beta)"
TWO = "g (float[B,T,8] x, float[B,T,8] skip) => (float[B,T,8] y)"
INPUTS = {"x": floats(2, 5, 8), "skip": floats(2, 5, 8, seed=9)}

SUMS = pytest.mark.parametrize(
    ("body", "initializers"),
    [
        ("t = Add(x, skip)", WEIGHTS),
        ("s = Add(x, bias)  t = Add(s, skip)", BIAS),
        ("s = Add(bias, x)  t = Add(skip, s)", BIAS),
    ],
)


def separated(text: str, **initializers: np.ndarray):
    return PreventSkipLayerNorm()(graph_of(text, **initializers))


@SUMS
def test_the_optimiser_leaves_them_apart(body, initializers, tmp_path):
    text = f"{TWO} {{ {body}  {NORM} }}"
    assert optimised(graph_of(text, **initializers), tmp_path)["SkipLayerNormalization"] == 1  # or the pass may go
    found = optimised(separated(text, **initializers).model, tmp_path)
    assert (found["LayerNormalization"], found["SkipLayerNormalization"]) == (1, 0)


@SUMS
def test_the_same_function(body, initializers):
    text = f"{TWO} {{ {body}  {NORM} }}"
    result = separated(text, **initializers)
    assert result.modified
    np.testing.assert_array_equal(
        run(result.model, **INPUTS)[0], run(graph_of(text, **initializers), **INPUTS)[0], strict=True
    )


@pytest.mark.parametrize(
    ("why", "text", "initializers"),
    [
        (
            "the sum is read elsewhere too",
            "g (float[B,T,8] x, float[B,T,8] skip) => (float[B,T,8] y, float[B,T,8] z) "
            f"{{ t = Add(x, skip)  {NORM}  z = Neg(t) }}",
            WEIGHTS,
        ),
        (
            "no sum at all",
            "g (float[B,T,8] x) => (float[B,T,8] y) { t = Neg(x)  y = LayerNormalization(t, gamma, beta) }",
            WEIGHTS,
        ),
    ],
)
def test_leaves_what_is_never_fused_alone(why, text, initializers):
    before = operators(graph_of(text, **initializers))
    result = separated(text, **initializers)
    assert not result.modified, why
    assert operators(result.model) == before
