"""Self-attention → MultiHeadAttention in two branches, and what looks like attention but is not ours."""

import numpy as np
import pytest
from graphs import floats, graph_of, operators, run
from onnx_ir.passes.common import RemoveUnusedNodesPass

from m3_export.graph.passes.flash_attention import FuseAttention

BIASES = {"bq": floats(8, seed=1), "bk": floats(8, seed=2), "bv": floats(8, seed=3)}
CONSTANTS = {
    **BIASES,
    "split": np.array([0, 0, 2, 4], np.int64),
    "joined": np.array([0, 0, 8], np.int64),
    "axes": np.array([1, 2], np.int64),
    "one": np.float32(1.0),
    "masked": np.float32(-1e9),
    "scale": np.float32(0.5),
}
# as M3Model is traced: two heads of size 4
ATTENTION = """
g (float[B,T,8] q, float[B,T,8] k, float[B,T,8] v, int64[B,T] mask) => (float[B,T,8] y) {
    wide = Unsqueeze(mask, axes)
    kept = Cast<to=1>(wide)
    dropped = Sub(one, kept)
    mask_scores = Mul(dropped, masked)
    q1 = Add(q, bq)  q2 = Reshape(q1, split)  q3 = Transpose<perm=[0,2,1,3]>(q2)
    k1 = Add(k, bk)  k2 = Reshape(k1, split)  k3 = Transpose<perm=[0,2,3,1]>(k2)
    v1 = Add(v, bv)  v2 = Reshape(v1, split)  v3 = Transpose<perm=[0,2,1,3]>(v2)
    scores = MatMul(q3, k3)
    scaled = Mul(scores, scale)
    total = Add(scaled, mask_scores)
    probabilities = Softmax<axis=-1>(total)
    context = MatMul(probabilities, v3)
    turned = Transpose<perm=[0,2,1,3]>(context)
    y = Reshape(turned, joined)
}
"""


def fused(text: str = ATTENTION, **changed: np.ndarray):
    result = FuseAttention()(graph_of(text, **{**CONSTANTS, **changed}))
    RemoveUnusedNodesPass()(result.model)
    return result


def inputs(*lengths: int) -> dict[str, np.ndarray]:
    longest = max(lengths)
    mask = (np.arange(longest)[None] < np.array(lengths)[:, None]).astype(np.int64)
    qkv = {name: floats(len(lengths), longest, 8, seed=seed) for seed, name in enumerate("qkv", start=5)}
    return {**qkv, "mask": mask}


@pytest.mark.parametrize("lengths", [(7,), (7, 7, 7), (7, 3), (1, 9, 4), (1,)])
def test_same_attention_padded_or_not(lengths):
    batch = inputs(*lengths)
    expected = run(graph_of(ATTENTION, **CONSTANTS), **batch)[0]
    result = fused()
    assert result.modified
    got = run(result.model, **batch)[0]
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(got[row, :length], expected[row, :length], atol=1e-5)


def test_two_branches_and_no_score_matrix():
    found = operators(fused().model)
    assert found["MultiHeadAttention"] == 2
    assert found["If"] == 1
    assert not {"Softmax", "MatMul", "Transpose"} & found.keys()


def test_the_branch_without_padding_has_no_mask():
    (choice,) = [node for node in fused().model.graph if node.op_type == "If"]
    flash, masked = (next(iter(choice.attributes[name].as_graph())) for name in ("then_branch", "else_branch"))
    assert len(flash.inputs) == 4  # query, key, value, bias
    assert len(masked.inputs) == 5


def test_padded_keys_do_not_matter():
    batch = inputs(7, 3)
    model = fused().model
    before = run(model, **batch)[0]
    for name in ("k", "v"):
        batch[name][1, 3:] = 1e3
    np.testing.assert_array_equal(run(model, **batch)[0][1, :3], before[1, :3])


def test_the_mask_is_prepared_once_for_all_layers():
    second = ATTENTION.replace("=> (float[B,T,8] y)", "=> (float[B,T,8] y, float[B,T,8] y2)").replace(
        "    y = Reshape(turned, joined)\n",
        """    y = Reshape(turned, joined)
    a1 = Add(y, bq)  a2 = Reshape(a1, split)  a3 = Transpose<perm=[0,2,1,3]>(a2)
    b1 = Add(k, bk)  b2 = Reshape(b1, split)  b3 = Transpose<perm=[0,2,3,1]>(b2)
    c1 = Add(v, bv)  c2 = Reshape(c1, split)  c3 = Transpose<perm=[0,2,1,3]>(c2)
    d = MatMul(a3, b3)  e = Mul(d, scale)  f = Add(e, mask_scores)  h = Softmax<axis=-1>(f)
    i = MatMul(h, c3)  j = Transpose<perm=[0,2,1,3]>(i)
    y2 = Reshape(j, joined)
""",
    )
    result = fused(second)
    assert operators(result.model)["If"] == 2
    assert operators(result.model)["ReduceMin"] == 1
    batch = inputs(6, 2)
    for got, wanted in zip(run(result.model, **batch), run(graph_of(second, **CONSTANTS), **batch), strict=True):
        np.testing.assert_allclose(got[0], wanted[0], atol=1e-5)
        np.testing.assert_allclose(got[1, :2], wanted[1, :2], atol=1e-5)


@pytest.mark.parametrize(
    ("why", "old", "new", "changed"),
    [
        ("softmax over another axis", "Softmax<axis=-1>", "Softmax<axis=1>", {}),
        ("a weak penalty is a bias, not a mask", "", "", {"masked": np.float32(-1.0)}),
        ("mask counted from two", "", "", {"one": np.float32(2.0)}),
        ("a mask of queries, not keys", "", "", {"axes": np.array([1, 3], np.int64)}),
        ("keys not transposed as keys", "Transpose<perm=[0,2,3,1]>(k2)", "Transpose<perm=[0,3,2,1]>(k2)", {}),
        ("the scores are read elsewhere", "scaled = Mul(scores, scale)", "scaled = Mul(scores, scores)", {}),
        ("no biases", "q1 = Add(q, bq)", "q1 = Neg(q)", {}),
        ("another way to join heads", "Transpose<perm=[0,2,1,3]>(context)", "Transpose<perm=[2,0,1,3]>(context)", {}),
    ],
)
def test_leaves_near_misses_alone(why, old, new, changed):
    text = ATTENTION.replace(old, new) if old else ATTENTION
    assert (text != ATTENTION) or changed
    result = fused(text, **changed)
    assert not result.modified, why
    assert operators(result.model)["Softmax"] == 1


def test_probabilities_that_are_an_output_stay():
    text = ATTENTION.replace("=> (float[B,T,8] y)", "=> (float[B,T,8] y, float[B,2,T,T] probabilities)")
    assert not fused(text).modified
