"""Outlier neurons in float: the same function, and ordinary rows for the quantizer."""

import numpy as np
import pytest
import torch
from graphs import floats, graph_of, operators, optimised, run, run_int8

from m3_export.graph.passes import for_onnxruntime
from m3_export.graph.passes.outlier_neurons import SplitOutlierNeurons
from m3_export.plan.plan import DYNAMIC, Kind, Projection
from m3_export.quantize.onnx_int8 import QuantizeProjections
from m3_export.quantize.projection import InputStatistics, quantize_projection

OUTLIERS = (3, 17)
W_IN, B_IN, W_OUT, B_OUT = floats(8, 32, seed=1), floats(32, seed=2), floats(32, 8, seed=3), floats(8, seed=4)
W_IN[:, OUTLIERS] *= 60
WEIGHTS = {"w_in": W_IN, "b_in": B_IN, "w_out": W_OUT, "b_out": B_OUT}
FFN = """
g (float[B,T,8] x) => (float[B,T,8] y) {
    p = MatMul(x, w_in)  q = Add(p, b_in)  r = Gelu(q)  s = MatMul(r, w_out)  y = Add(s, b_out)
}
"""


def split(text=FFN, neurons=(OUTLIERS,), **changed):
    return SplitOutlierNeurons(neurons)(graph_of(text, **{**WEIGHTS, **changed}))


def test_the_same_function():
    x = floats(2, 5, 8, seed=9)
    expected = run(graph_of(FFN, **WEIGHTS), x=x)[0]
    result = split()
    assert result.modified
    np.testing.assert_allclose(run(result.model, x=x)[0], expected, rtol=1e-4, atol=1e-3)


def test_the_same_function_fused(tmp_path):
    x = floats(2, 5, 8, seed=9)
    expected = run(graph_of(FFN, **WEIGHTS), x=x)[0]
    fused = for_onnxruntime(split().model)
    assert optimised(fused, tmp_path)["BiasGelu"] == 2
    np.testing.assert_allclose(run(fused, x=x)[0], expected, rtol=1e-4, atol=1e-3)


def test_outlier_neurons_are_silent_in_the_rest():
    model = split().model
    (rest, _thin) = [node for node in model.graph if node.op_type == "Gelu"]
    model.graph.outputs.append(rest.outputs[0])
    activations = run(model, x=floats(2, 5, 8, seed=9))[1]
    assert not activations[..., OUTLIERS].any()
    assert np.count_nonzero(activations.any(axis=(0, 1))) == 30


def form_in(model, kind):
    """INT8 of a weight as it stands in the graph; what calibration would add to the bias is left out."""
    weight = torch.from_numpy(np.array(model.graph.initializers[f"layers.0.{kind}.weight"].const_value.numpy()))
    rows = torch.zeros((1, len(weight)))
    return quantize_projection(
        DYNAMIC, InputStatistics(rows[0] - 1, rows[0] + 1, rows, kind is Kind.FFN_OUT), weight, group=0
    )


def test_int8_gains():
    """What it is for: the same quantizer, several times closer to float."""
    x = floats(4, 16, 8, seed=9)
    named = FFN.replace("w_in", "win").replace("w_out", "wout")

    def int8(neurons):
        model = graph_of(named, win=W_IN, b_in=B_IN, wout=W_OUT, b_out=B_OUT)
        for old, new in (("win", "layers.0.ffn_in.weight"), ("wout", "layers.0.ffn_out.weight")):
            model.graph.initializers[old].name = new
        model = for_onnxruntime(SplitOutlierNeurons((neurons,))(model).model)
        quantized = {Projection(0, kind): form_in(model, kind) for kind in (Kind.FFN_IN, Kind.FFN_OUT)}
        return run_int8(QuantizeProjections(quantized)(model).model, x=x)[0]

    exact = run(graph_of(FFN, **WEIGHTS), x=x)[0]
    apart, together = (np.abs(int8(neurons) - exact).mean() for neurons in (OUTLIERS, ()))
    assert apart < together / 3


def test_no_outlier_neuron_no_change():
    result = split(neurons=((),))
    assert not result.modified
    assert operators(result.model) == operators(graph_of(FFN, **WEIGHTS))


@pytest.mark.parametrize(
    ("why", "old", "new"),
    [
        ("the activations are read elsewhere", "y = Add(s, b_out)", "z = MatMul(r, w_out)  y = Add(s, z)"),
        ("no bias", "q = Add(p, b_in)  r = Gelu(q)", "r = Gelu(p)"),
        ("no product follows", "s = MatMul(r, w_out)", "s = MatMul(p, w_out)"),
        ("no product before", "p = MatMul(x, w_in)", "c = Concat<axis=2>(x, x, x, x)  p = Neg(c)"),
    ],
)
def test_leaves_near_misses_alone(why, old, new):
    text = FFN.replace(old, new)
    assert text != FFN
    assert not split(text).modified, why


def test_one_list_per_layer():
    with pytest.raises(ValueError, match="2 lists of neurons for 1 layers"):
        split(neurons=(OUTLIERS, OUTLIERS))
