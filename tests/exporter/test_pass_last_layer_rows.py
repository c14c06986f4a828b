"""The last layer for as many tokens as are asked for, and graphs whose last layer has to stay whole."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import openvino as ov
import pytest
from graphs import floats, graph_of, operators, run
from onnx_ir.passes.common import RemoveUnusedNodesPass
from test_graph import padded, session_of, texts_of

from m3_export.graph import passes
from m3_export.graph.passes.last_layer_rows import ALL_TOKENS, KeepLastLayerRows
from m3_export.graph.passes.outlier_neurons import OUTLIERS
from m3_runtime.bundle.manifest import Head
from m3_runtime.engines import KEPT_TOKENS

CONSTANTS = {
    **{name: floats(8, seed=seed) for seed, name in enumerate(("gamma", "beta", "bq", "bk", "bv", "bo", "b2"))},
    **{name: floats(8, 8, seed=seed) for seed, name in enumerate(("wq", "wk", "wv", "wo"), start=10)},
    "w1": floats(8, 16, seed=20),
    "b1": floats(16, seed=21),
    "w2": floats(16, 8, seed=22),
    "ws": floats(8, 1, seed=23),
    "bs": floats(1, seed=24),
    "wc": floats(8, 3, seed=25),
    "two": np.array([2], np.int64),
    "four": np.array([4], np.int64),
    "eight": np.array([8], np.int64),
    "first": np.int64(0),
    "second": np.int64(1),
    "unused_id": np.int64(3),
    "from_1": np.array([1], np.int64),
    "end": np.array([2**63 - 1], np.int64),
    "last": np.array([-1], np.int64),
    "axes": np.array([1, 2], np.int64),
    "one": np.float32(1),
    "masked": np.float32(-1e9),
    "scale": np.float32(0.5),
}
# a last layer and its heads as M3Model is traced: two attention heads of size 4
LAYER = """
g (int64[B,T] ids, int64[B,T] mask, float[B,T,8] x0) => (float[B,N] dense, float[B,M] weights, float[B,R,3] vectors)
<float[B,T,2,4] q2, float[B,T,2,4] k2, float[B,T,2,4] v2, float[B,T,8] context> {
    x = LayerNormalization(x0, gamma, beta)
    texts = Shape<start=0, end=1>(mask)  tokens = Shape<start=1, end=2>(mask)
    split = Concat<axis=0>(texts, tokens, two, four)
    joined = Concat<axis=0>(texts, tokens, eight)
    wide = Unsqueeze(mask, axes)  kept = Cast<to=1>(wide)  dropped = Sub(one, kept)  mask_scores = Mul(dropped, masked)
    q0 = MatMul(x, wq)  q1 = Add(q0, bq)  q2 = Reshape(q1, split)  q3 = Transpose<perm=[0,2,1,3]>(q2)
    k0 = MatMul(x, wk)  k1 = Add(k0, bk)  k2 = Reshape(k1, split)  k3 = Transpose<perm=[0,2,3,1]>(k2)
    v0 = MatMul(x, wv)  v1 = Add(v0, bv)  v2 = Reshape(v1, split)  v3 = Transpose<perm=[0,2,1,3]>(v2)
    scores = MatMul(q3, k3)  scaled = Mul(scores, scale)  total = Add(scaled, mask_scores)
    probabilities = Softmax<axis=-1>(total)
    mixed = MatMul(probabilities, v3)  turned = Transpose<perm=[0,2,1,3]>(mixed)  context = Reshape(turned, joined)
    o0 = MatMul(context, wo)  o1 = Add(o0, bo)  o2 = Add(o1, x)
    h = LayerNormalization(o2, gamma, beta)
    f0 = MatMul(h, w1)  f1 = Add(f0, b1)  f2 = Gelu(f1)  f3 = MatMul(f2, w2)  f4 = Add(f3, b2)  f5 = Add(f4, h)
    y = LayerNormalization(f5, gamma, beta)
    dense = Gather<axis=1>(y, first)
    s0 = MatMul(y, ws)  s1 = Add(s0, bs)  s2 = Relu(s1)  s3 = Squeeze(s2, last)
    there = Cast<to=1>(mask)  s4 = Mul(s3, there)
    unused = Equal(ids, unused_id)  used = Not(unused)  counted = Cast<to=1>(used)
    weights = Mul(s4, counted)
    c0 = Slice(y, from_1, end, from_1, from_1)  c1 = MatMul(c0, wc)
    m0 = Slice(mask, from_1, end, from_1, from_1)  m1 = Unsqueeze(m0, two)  m2 = Cast<to=1>(m1)
    vectors = Mul(c1, m2)
}
"""
LENGTHS = [(7,), (5, 5, 5), (7, 3), (1, 9, 4), (1,)]


def narrowed(text: str = LAYER, **changed: np.ndarray):
    result = KeepLastLayerRows()(graph_of(text, **{**CONSTANTS, **changed}))
    RemoveUnusedNodesPass()(result.model)
    return result


def inputs(*lengths: int) -> dict[str, np.ndarray]:
    longest = max(lengths)
    mask = (np.arange(longest)[None] < np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(len(lengths)).integers(2, 6, mask.shape)
    return {"ids": ids, "mask": mask, "x0": floats(*mask.shape, 8, seed=30)}


def keeping(tokens: int) -> dict[str, np.ndarray]:
    return {KEPT_TOKENS: np.array([tokens], np.int64)}


@pytest.mark.parametrize("lengths", LENGTHS)
def test_without_the_new_input_nothing_changes(lengths):
    batch = inputs(*lengths)
    expected = run(graph_of(LAYER, **CONSTANTS), **batch)
    result = narrowed()
    assert result.modified
    for got, wanted in zip(run(result.model, **batch), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_one_token_is_enough_for_the_dense_vector(lengths):
    batch = inputs(*lengths)
    expected = run(graph_of(LAYER, **CONSTANTS), **batch)
    dense, weights, vectors = run(narrowed().model, **batch, **keeping(1))
    np.testing.assert_allclose(dense, expected[0], atol=1e-6)
    np.testing.assert_allclose(weights, expected[1][:, :1], atol=1e-6)
    assert vectors.shape == (len(lengths), 0, 3)


@pytest.mark.parametrize("kept", [2, 4, 7, 8, ALL_TOKENS])
def test_any_number_of_leading_tokens(kept):
    batch = inputs(7, 3)
    expected = run(graph_of(LAYER, **CONSTANTS), **batch)
    dense, weights, vectors = run(narrowed().model, **batch, **keeping(kept))
    np.testing.assert_allclose(dense, expected[0], atol=1e-6)
    np.testing.assert_allclose(weights, expected[1][:, :kept], atol=1e-6)
    np.testing.assert_allclose(vectors, expected[2][:, : kept - 1], atol=1e-6)


def test_attention_and_ffn_run_on_the_kept_rows_alone():
    text = LAYER.replace("float[B,N] dense,", "float[B,N] dense, float[B,C,8] context, float[B,F,16] f2,")
    dense, context, gelu, *_ = run(narrowed(text).model, **inputs(9, 4), **keeping(1))
    assert dense.shape == (2, 8)
    assert context.shape == (2, 1, 8)
    assert gelu.shape == (2, 1, 16)


def test_kept_rows_see_every_key_but_padding():
    model, batch = narrowed().model, inputs(9, 4)
    before = run(model, **batch, **keeping(1))[0]
    batch["x0"][:, 4:] = floats(2, 5, 8, seed=31)  # tokens of the first text, padding of the second
    after = run(model, **batch, **keeping(1))[0]
    assert np.abs(after - before)[0].max() > 1e-3
    np.testing.assert_array_equal(after[1], before[1])


def test_two_inputs_are_required_and_the_third_has_a_default():
    model = narrowed().model
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options)
    assert [i.name for i in session.get_inputs()] == ["ids", "mask", "x0"]
    (optional,) = session.get_overridable_initializers()
    assert (optional.name, optional.type, optional.shape) == (KEPT_TOKENS, "tensor(int64)", [1])
    assert model.graph.initializers[KEPT_TOKENS].const_value.numpy().tolist() == [ALL_TOKENS]


def test_every_value_is_sliced_once():
    before, after = operators(graph_of(LAYER, **CONSTANTS)), operators(narrowed().model)
    assert after["Slice"] == before["Slice"] + 3  # the layer's input, the mask and the ids
    assert after["Shape"] == before["Shape"] + 2  # keys and values keep the old ones
    assert {op: n for op, n in after.items() if op not in ("Slice", "Shape", "Concat")} == {
        op: n for op, n in before.items() if op not in ("Slice", "Shape", "Concat")
    }


def test_what_may_be_shorter_is_not_said_to_be_as_long_as_the_text():
    """Runtimes reuse the memory of axes that have one name."""
    graph = narrowed().model.graph
    values = {value.name: value.shape for node in graph for value in node.outputs}
    assert [str(dim) for dim in values["k2"]] == ["B", "T", "2", "4"]
    for name, axis in (("q2", 1), ("scores", 2), ("probabilities", 2), ("context", 1), ("f2", 1), ("y", 1), ("s4", 1)):
        assert str(values[name][axis]) == "kept", name
    assert str(values["scores"][3]) == "T"


def test_a_second_time_changes_nothing():
    model = narrowed().model
    before = operators(model)
    assert not KeepLastLayerRows()(model).modified
    assert operators(model) == before


def test_shapes_that_copy_their_axes_follow_by_themselves():
    text = LAYER.replace("context = Reshape(turned, joined)", "context = Reshape(turned, copied)")
    copied = np.array([0, 0, 8], np.int64)
    batch = inputs(7, 3)
    result = narrowed(text, copied=copied)
    assert result.modified
    expected = run(graph_of(LAYER, **CONSTANTS), **batch)[0]
    np.testing.assert_allclose(run(result.model, **batch, **keeping(1))[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("why", "old", "new"),
    [
        ("mean pooling", "Gather<axis=1>(y, first)", "ReduceMean<keepdims=0>(y, from_1)"),
        ("the second token is pooled", "Gather<axis=1>(y, first)", "Gather<axis=1>(y, second)"),
        ("the second token, cut out first", "Gather<axis=1>(y, first)", "Gather<axis=1>(c0, first)"),
        ("a token that the text decides on", "Gather<axis=1>(y, first)", "GatherND<batch_dims=1>(y, ids)"),
        ("nothing is pooled", "dense = Gather<axis=1>(y, first)", "dense = Squeeze(s2, last)"),
        (
            "heads of the last token",
            "Slice(y, from_1, end, from_1, from_1)",
            "Slice(y, last, end, from_1, from_1)",
        ),
        ("weights over all tokens", "s2 = Relu(s1)", "s2 = Softmax<axis=1>(s1)"),
        ("weights summed up", "s2 = Relu(s1)", "s2 = CumSum(s1, second)"),
        ("lengths as factors", "there = Cast<to=1>(mask)", "n = ReduceSum(mask, from_1)  there = Cast<to=1>(n)"),
        ("counts as factors", "there = Cast<to=1>(mask)", "n = CumSum(mask, second)  there = Cast<to=1>(n)"),
        (
            "an earlier state is read too",
            "s3 = Squeeze(s2, last)",
            "e = Neg(x)  s9 = Mul(s2, e)  s3 = Squeeze(s9, last)",
        ),
        ("tokens against tokens", "s2 = Relu(s1)", "r = Transpose<perm=[0,2,1]>(s1)  s2 = MatMul(s1, r)"),
        ("no mask", "Softmax<axis=-1>(total)", "Softmax<axis=-1>(scaled)"),
        ("the query is read elsewhere", "k0 = MatMul(x, wk)", "k0 = Neg(q0)"),
        ("normalised over tokens too", "y = LayerNormalization(f5", "y = LayerNormalization<axis=1>(f5"),
    ],
)
def test_leaves_near_misses_alone(why, old, new):
    assert LAYER.count(old) == 1
    text = LAYER.replace(old, new)
    model = graph_of(text, **CONSTANTS)
    before = operators(model)
    assert not KeepLastLayerRows()(model).modified, why
    assert operators(model) == before
    assert [value.name for value in model.graph.inputs] == ["ids", "mask", "x0"]
    assert model.graph.initializers.keys() == CONSTANTS.keys()


def test_an_operator_of_somebody_else_may_do_anything():
    model = graph_of(LAYER, **CONSTANTS)
    (gelu,) = [node for node in model.graph if node.op_type == "Gelu"]
    gelu.domain = "com.example"
    assert not KeepLastLayerRows()(model).modified


def test_a_graph_for_one_length_stays_as_it_is():
    fixed = LAYER.replace("B,T", "2,5").replace("tokens, two", "five, two").replace("tokens, eight", "five, eight")
    assert not narrowed(fixed, five=np.array([5], np.int64)).modified


@pytest.fixture(scope="module")
def graph(portable_graph) -> ir.Model:
    """Two layers, CLS pooling, three heads."""
    return portable_graph()


def test_a_dense_only_model(portable_graph, tmp_path):
    model = passes.for_onnxruntime(portable_graph(layers=1, dense_only=True))
    assert_dense_is_the_same(session_of(model, tmp_path), atol=1e-6)


def assert_dense_is_the_same(session: ort.InferenceSession, atol: float) -> None:
    names = [Head.DENSE.output_name]
    for lengths in ((9,), (2,), (6, 6, 6), (11, 4), (3, 40, 20, 5)):
        batch = padded(texts_of(*lengths))
        np.testing.assert_allclose(
            session.run(names, {**batch, **keeping(1)})[0], session.run(names, batch)[0], atol=atol, rtol=0
        )


def test_attention_is_fused_in_the_last_layer_too(graph, tmp_path):
    fused = passes.for_onnxruntime(graph)
    found = operators(fused)
    assert found["MultiHeadAttention"] == 4
    assert not {"Softmax", "Transpose"} & found.keys()
    assert_dense_is_the_same(session_of(fused, tmp_path), atol=1e-6)


def test_the_last_layer_is_centred_and_its_outlier_neurons_split(graph, tmp_path):
    means = [floats(32, seed=seed) for seed in range(5)]
    easier = passes.for_int8(graph, means, [[3], [0, 5]])
    biases = [n.inputs[2].name for n in easier.graph if n.op_type == "LayerNormalization"]
    assert [name.endswith(".centred") for name in biases] == [True, True, True, True, False]  # as without the pass
    assert any(name.startswith(f"layers.1{OUTLIERS}") for name in easier.graph.initializers)
    fused = session_of(passes.for_onnxruntime(easier), tmp_path)
    assert_dense_is_the_same(fused, atol=1e-5)
    batch = padded(texts_of(11, 4))
    (tmp_path / "plain").mkdir()
    expected = session_of(graph, tmp_path / "plain").run(None, batch)
    for got, wanted in zip(fused.run(None, batch), expected, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_the_default_survives_openvinos_conversion(graph, tmp_path):
    """As a constant that three slices read: the engine makes an input of it. Others see two inputs."""
    ir.save(graph, tmp_path / "model.onnx", external_data="model.onnx.data")
    ov.save_model(ov.convert_model(tmp_path / "model.onnx"), tmp_path / "model.xml", compress_to_fp16=False)
    model = ov.Core().read_model(tmp_path / "model.xml")
    assert sorted(value.any_name for value in model.inputs) == ["attention_mask", "input_ids"]
    (constant,) = [node for node in model.get_ordered_ops() if node.get_friendly_name() == KEPT_TOKENS]
    assert constant.get_type_name() == "Constant"
    assert constant.data.tolist() == [ALL_TOKENS]
    assert len(constant.output(0).get_target_inputs()) == 3
