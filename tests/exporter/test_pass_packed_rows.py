"""Short texts packed into rows: each has the very bits that it has alone, and others are computed as before."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from graphs import Run, graph_of, opened
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import RemoveUnusedNodesPass
from test_graph import POOLINGS

from m3_export.graph import passes
from m3_export.graph.passes.packed_rows import PackRows
from m3_runtime.bundle.manifest import Pooling
from m3_runtime.encode.batching import pack_batch, pad_batch
from m3_runtime.engines import KEPT_TOKENS, PACKING_DEFAULTS, TokenBatch

HEADS = ("dense_vecs", "token_weights", "colbert_vecs")
PAD = 1
# Of `portable_graph`: graphs that other tests look at too, since a trace takes seconds.
OPTIONS = [{}, *({"layers": 1, **options} for options in POOLINGS)]
TEXTS = st.lists(st.lists(st.integers(4, 49), min_size=2, max_size=30), min_size=1, max_size=5)


@pytest.fixture(scope="module", params=OPTIONS)
def models(request, portable_graph: Callable[..., ir.Model]) -> tuple[Pooling, ir.Model, ir.Model]:
    """How dense vectors are pooled, the portable graph, and the one that packs."""
    portable = portable_graph(**request.param)
    return request.param.get("pooling", Pooling.CLS), portable, passes.for_openvino(portable)


@pytest.fixture(scope="module")
def graphs(models: tuple[Pooling, ir.Model, ir.Model]) -> tuple[Pooling, Run, Run]:
    """Both graphs, opened."""
    pooling, portable, packing = models
    return pooling, opened(portable), opened(packing)


def feeds(batch: TokenBatch) -> dict[str, np.ndarray]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **batch.packing()}


def of_texts(batch: TokenBatch, outputs: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Dense vector, token weights and ColBERT rows of each text."""
    dense, weights, colbert = outputs
    found = []
    for number in range(len(dense)):
        row, columns = (axis for axis in np.nonzero(batch.texts() == number))
        found.append([dense[number], weights[row, columns], colbert[row[1:], columns[1:] - 1]])
    return found


def packed(graph: Run, pooling: Pooling, rows: list[list[list[int]]], padding: int = 0) -> list[list[np.ndarray]]:
    batch = pack_batch([[np.array(text, np.int32) for text in row] for row in rows], PAD, pooling)
    wide = ((0, 0), (0, padding))
    ids, numbers = np.pad(batch.input_ids, wide, constant_values=PAD), np.pad(batch.attention_mask, wide)
    batch = TokenBatch(ids, numbers, batch.packed_texts, batch.leading)
    return of_texts(batch, graph(**feeds(batch)))


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_the_very_bits_in_any_company_order_and_padding(graphs, data):
    pooling, _, graph = graphs
    rows = data.draw(st.lists(TEXTS, min_size=1, max_size=3))
    together = packed(graph, pooling, rows, data.draw(st.integers(0, 20)))
    alone = [packed(graph, pooling, [[text]])[0] for row in rows for text in row]
    for one, other in zip(together, alone, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@settings(max_examples=10, deadline=None)
@given(texts=TEXTS)
def test_a_packed_text_is_what_it_is_in_a_row_of_its_own(graphs, texts):
    pooling, portable, graph = graphs
    for text, found in zip(texts, packed(graph, pooling, [texts]), strict=True):
        plain = pad_batch([np.array(text, np.int32)], PAD)
        expected = portable(input_ids=plain.input_ids, attention_mask=plain.attention_mask)
        for a, b in zip(found, of_texts(plain, expected)[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


@settings(max_examples=10, deadline=None)
@given(texts=TEXTS)
def test_rows_of_one_text_each_are_computed_as_before(graphs, texts):
    _, portable, graph = graphs
    batch = pad_batch([np.array(text, np.int32) for text in texts], PAD)
    expected = portable(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for a, b in zip(graph(**feeds(batch)), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_without_padding_no_mask_is_needed(graphs):
    """What others get who know two inputs, and what our engine gets that says so."""
    _, _, graph = graphs
    batch = TokenBatch(np.arange(4, 34).reshape(2, 15), np.ones((2, 15), np.int64))
    for a, b in zip(graph(**feeds(batch)), graph(**{**feeds(batch), **PACKING_DEFAULTS}), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_literal_padding_inside_a_text_counts_no_position(graphs):
    """As in transformers: positions go by ids that are not the pad id."""
    pooling, portable, graph = graphs
    text = [0, 7, PAD, PAD, 9, 2]
    plain = TokenBatch(np.array([text]), np.ones((1, len(text)), np.int64))
    expected = portable(input_ids=plain.input_ids, attention_mask=plain.attention_mask)
    found = packed(graph, pooling, [[[0, 5, 2], text]])[1]
    for a, b in zip(found, of_texts(plain, expected)[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_a_dense_call_computes_the_leading_tokens_alone(graphs, models):
    pooling, _, graph = graphs
    if pooling is not Pooling.CLS:
        assert KEPT_TOKENS not in models[-1].graph.initializers
        return
    texts = [np.array([0, *range(4, 4 + n), 2], np.int32) for n in (9, 0, 30)]
    batch = pack_batch([texts[:2], texts[2:]], PAD, pooling)
    whole = graph(**feeds(batch))
    some = graph(**feeds(batch), kept_tokens=np.array([batch.leading]))
    np.testing.assert_array_equal(some[0], whole[0])
    assert some[1].shape == (2, batch.leading)


def test_no_weights_are_stored_twice(models):
    _, portable, graph = models
    assert graph.graph.initializers.keys() <= portable.graph.initializers.keys()


def test_a_graph_of_another_shape_is_refused():
    other = graph_of("g (float[B,T] x) => (float[B,T] y) { y = Softmax<axis=-1>(x) }")
    RemoveUnusedNodesPass()(other)
    with pytest.raises(ValueError, match="can be packed"):
        PackRows()(other)
