"""Centring: the same function, with the means gone from what projections read."""

import numpy as np
import pytest
from graphs import floats, graph_of, operators, run

from m3_export.graph.passes.centre_activations import CentreActivations

MEAN = 5 * floats(8, seed=11)
WEIGHTS = {
    "gamma": floats(8, seed=1),
    "beta": floats(8, seed=2),
    "w1": floats(8, 6, seed=3),
    "b1": floats(6, seed=4),
    "w2": floats(6, 8, seed=5),
    "b2": floats(8, seed=6),
}
# as M3Model is traced: a normalisation, a projection of it, and the residual around both
BLOCK = """
g (float[B,T,8] x0) => (float[B,T,8] y) {
    x = LayerNormalization<epsilon=0.00001>(x0, gamma, beta)
    p = MatMul(x, w1)  q = Add(p, b1)  r = Gelu(q)
    s = MatMul(r, w2)  t = Add(s, b2)
    u = Add(t, x)
    y = Neg(u)
}
"""


def centred(text=BLOCK, means=(MEAN,), **changed):
    return CentreActivations(means)(graph_of(text, **{**WEIGHTS, **changed}))


def test_the_same_function():
    x0 = floats(2, 5, 8, seed=9)
    expected = run(graph_of(BLOCK, **WEIGHTS), x0=x0)[0]
    result = centred()
    assert result.modified
    np.testing.assert_allclose(run(result.model, x0=x0)[0], expected, atol=2e-5)


def test_nothing_is_added_to_the_graph():
    assert operators(centred().model) == operators(graph_of(BLOCK, **WEIGHTS))


def test_what_the_projection_reads_has_lost_its_mean():
    text = BLOCK.replace("=> (float[B,T,8] y)", "=> (float[B,T,8] y, float[B,T,8] x)")
    x0 = floats(2, 50, 8, seed=9)
    x = run(graph_of(text, **WEIGHTS), x0=x0)[1]
    mean = x.mean(axis=(0, 1))
    model = centred(means=(mean,)).model
    (norm,) = [node for node in model.graph if node.op_type == "LayerNormalization"]
    model.graph.outputs.append(norm.outputs[0])
    shifted = run(model, x0=x0)[1]
    np.testing.assert_allclose(shifted, x - mean, atol=1e-5)


def test_several_projections_share_one_normalisation():
    text = BLOCK.replace("r = Gelu(q)", "p2 = MatMul(x, w1)  q2 = Add(b1, p2)  q3 = Mul(q, q2)  r = Gelu(q3)")
    x0 = floats(1, 4, 8, seed=9)
    expected = run(graph_of(text, **WEIGHTS), x0=x0)[0]
    np.testing.assert_allclose(run(centred(text).model, x0=x0)[0], expected, atol=1e-4, rtol=1e-4)


def test_biases_that_are_one_tensor_are_told_apart():
    """The exporter merges equal initializers: here the norm and the residual share one."""
    text = BLOCK.replace("Add(s, b2)", "Add(s, beta)")
    x0 = floats(1, 4, 8, seed=9)
    expected = run(graph_of(text, **WEIGHTS), x0=x0)[0]
    result = centred(text)
    assert result.modified
    np.testing.assert_allclose(run(result.model, x0=x0)[0], expected, atol=2e-5)


@pytest.mark.parametrize(
    ("why", "old", "new"),
    [
        ("a head reads it too", "y = Neg(u)", "z = Exp(x)  y = Add(u, z)"),
        ("it is an output", "=> (float[B,T,8] y)", "=> (float[B,T,8] y, float[B,T,8] x)"),
        ("no residual", "u = Add(t, x)", "u = Neg(t)"),
        ("two residuals", "y = Neg(u)", "v = MatMul(r, w2)  w = Add(v, b2)  z = Add(w, x)  y = Add(u, z)"),
        ("a projection without bias", "q = Add(p, b1)  r = Gelu(q)", "r = Gelu(p)"),
        ("a residual without bias", "t = Add(s, b2)", "t = Neg(s)"),
        ("the projection's product is read elsewhere", "r = Gelu(q)", "o = Mul(p, q)  r = Gelu(o)"),
    ],
)
def test_leaves_near_misses_alone(why, old, new):
    text = BLOCK.replace(old, new)
    assert text != BLOCK
    before = graph_of(text, **WEIGHTS)
    result = centred(text)
    assert not result.modified, why
    x0 = floats(1, 3, 8, seed=9)
    np.testing.assert_array_equal(run(result.model, x0=x0)[0], run(before, x0=x0)[0])


def test_as_many_means_as_normalisations():
    with pytest.raises(ValueError, match="2 means for 1 normalisations"):
        centred(means=(MEAN, MEAN))
