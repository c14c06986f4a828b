"""Centring: the same function, with the means gone from what projections read."""

import numpy as np
import pytest
from graphs import floats, graph_of, operators, run

from m3_export.graph.passes.centre_activations import CentreActivations

MEANS = tuple(5 * floats(8, seed=seed) for seed in (11, 12, 13))
# as M3Model is traced: normalisations around the attention and the FFN of a layer, here without a softmax
LAYER = """
g (float[B,T,8] x0) => (float[B,T,8] y) {
    x = LayerNormalization<epsilon=0.00001>(x0, gamma, beta)
    q0 = MatMul(x, wq)  q = Add(q0, bq)  k0 = MatMul(x, wk)  k = Add(bk, k0)  v0 = MatMul(x, wv)  v = Add(v0, bv)
    qk = Mul(q, k)  a = Add(qk, v)  o0 = MatMul(a, wo)  o = Add(o0, bo)  r = Add(o, x)
    z = LayerNormalization<epsilon=0.00001>(r, gamma, beta2)
    f0 = MatMul(z, wf)  f = Add(f0, bf)  e = Gelu(f)  g0 = MatMul(e, wg)  g1 = Add(g0, bg)  s = Add(g1, z)
    y = LayerNormalization<epsilon=0.00001>(s, gamma, beta3)
}
"""
NAMES = {"wq": "query", "wk": "key", "wv": "value", "wo": "attention_out", "wf": "ffn_in", "wg": "ffn_out"}
SHAPES = dict.fromkeys(NAMES, (8, 8)) | dict.fromkeys(("gamma", "beta", "beta2", "beta3"), (8,))
SHAPES |= {name.replace("w", "b"): (8,) for name in NAMES}
WEIGHTS = {name: floats(*shape, seed=seed) for seed, (name, shape) in enumerate(SHAPES.items())}
X0 = floats(2, 5, 8, seed=99)


def named(text=LAYER, **changed):
    """The graph with M3Model's names for its weights."""
    model = graph_of(text, **{**WEIGHTS, **changed})
    for name, projection in NAMES.items():
        if name in model.graph.initializers:
            model.graph.initializers[name].name = f"layers.0.{projection}.weight"
    return model


def test_the_same_function():
    result = CentreActivations(MEANS)(named())
    assert result.modified
    np.testing.assert_allclose(run(result.model, x0=X0)[0], run(named(), x0=X0)[0], atol=1e-4)


def test_nothing_is_added_to_the_graph():
    assert operators(CentreActivations(MEANS)(named()).model) == operators(named())


def test_what_projections_read_has_lost_its_mean_and_what_heads_read_has_not():
    model = CentreActivations(MEANS)(named()).model
    norms = [node.outputs[0] for node in model.graph if node.op_type == "LayerNormalization"]
    model.graph.outputs.extend(norms[:2])
    before = named()
    before.graph.outputs.extend([n.outputs[0] for n in before.graph if n.op_type == "LayerNormalization"][:2])
    y, *inner = run(model, x0=X0)
    expected, *plain = run(before, x0=X0)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    for centred, whole, mean in zip(inner, plain, MEANS[:2], strict=True):
        np.testing.assert_allclose(centred, whole - mean, atol=1e-4)


def test_biases_that_are_one_tensor_are_told_apart():
    """The exporter merges equal initializers: here a norm, a projection and the residual share one."""
    text = LAYER.replace("Add(q0, bq)", "Add(q0, beta)").replace("Add(o0, bo)", "Add(o0, beta)")
    result = CentreActivations(MEANS)(named(text))
    np.testing.assert_allclose(run(result.model, x0=X0)[0], run(named(text), x0=X0)[0], atol=1e-4)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("q = Add(q0, bq)", "q = Neg(q0)"),  # a projection without bias
        ("o = Add(o0, bo)", "o = Neg(o0)"),  # a residual without bias
        ("k = Add(bk, k0)", "k1 = Add(bk, k0)  k = Mul(k0, k1)"),  # the product is read elsewhere too
        ("f0 = MatMul(z, wf)", "f0 = Neg(z)"),  # no such projection
    ],
)
def test_a_graph_that_is_none_of_ours_is_refused(old, new):
    text = LAYER.replace(old, new)
    assert text != LAYER
    with pytest.raises(ValueError, match=r"no product with|has no 'layers"):
        CentreActivations(MEANS)(named(text))


def test_as_many_means_as_normalisations():
    with pytest.raises(ValueError, match="2 means for 3 normalisations"):
        CentreActivations(MEANS[:2])(named())
