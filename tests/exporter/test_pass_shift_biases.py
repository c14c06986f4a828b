"""Biases shifted: the product moves by exactly that much, wherever the bias stands, and near-misses are refused."""

import numpy as np
import pytest
from graphs import floats, graph_of, run

from m3_export.graph.passes.shift_biases import ShiftBiases

W, B, THIN, X = floats(8, 4, seed=1), floats(4, seed=2), floats(8, 4, seed=3), floats(2, 3, 8)
SHIFT = floats(4, seed=4)
PLAIN = "g (float[B,T,8] x) => (float[B,T,4] y) { p = MatMul(x, w)  y = Add(p, b) }"
BIAS_FIRST = "g (float[B,T,8] x) => (float[B,T,4] y) { p = MatMul(x, w)  y = Add(b, p) }"
BEHIND_THIN = """
g (float[B,T,8] x) => (float[B,T,4] y) { p = MatMul(x, w)  q = MatMul(x, thin)  s = Add(p, q)  y = Add(s, b) }
"""


@pytest.mark.parametrize("text", [PLAIN, BIAS_FIRST, BEHIND_THIN])
def test_the_output_moves_by_the_shift(text):
    weights = {"w": W, "b": B} | ({"thin": THIN} if "thin" in text else {})
    before = run(graph_of(text, **weights), x=X)[0]
    after = run(ShiftBiases({"w": SHIFT})(graph_of(text, **weights)).model, x=X)[0]
    np.testing.assert_allclose(after, before + SHIFT, atol=1e-6)


def test_a_bias_that_two_projections_share_moves_for_one_alone():
    text = """
    g (float[B,T,8] x) => (float[B,T,4] y, float[B,T,4] z) {
        p = MatMul(x, w)  y = Add(p, b)  q = MatMul(x, other)  z = Add(q, b)
    }
    """
    weights = {"w": W, "b": B, "other": THIN}
    before = run(graph_of(text, **weights), x=X)
    after = run(ShiftBiases({"w": SHIFT})(graph_of(text, **weights)).model, x=X)
    np.testing.assert_allclose(after[0], before[0] + SHIFT, atol=1e-6)
    np.testing.assert_array_equal(after[1], before[1])


def test_no_shifts_no_change():
    assert not ShiftBiases({})(graph_of(PLAIN, w=W, b=B)).modified


@pytest.mark.parametrize(
    "text",
    [
        "g (float[B,T,8] x) => (float[B,T,4] y) { p = MatMul(x, w)  y = Relu(p) }",
        "g (float[B,T,8] x, float[B,T,4] b) => (float[B,T,4] y) { p = MatMul(x, w)  y = Add(p, b) }",
        "g (float[B,T,8] x) => (float[B,T,4] y, float[B,T,4] z) { p = MatMul(x, w)  y = Relu(p)  z = Neg(p) }",
    ],
)
def test_without_a_bias_to_take_it_the_shift_is_refused(text):
    with pytest.raises(ValueError, match="no product with 'w' that a bias is added to"):
        ShiftBiases({"w": SHIFT})(graph_of(text, w=W))


def test_a_weight_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no product with 'v'"):
        ShiftBiases({"v": SHIFT})(graph_of(PLAIN, w=W, b=B))
