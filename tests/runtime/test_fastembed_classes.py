"""fastembed's classes over a bundle; tests/environment opens a bundle with fastembed itself."""

import logging

import numpy as np
import pytest

from m3_runtime import BundleNotFoundError, HeadError, InputError
from m3_runtime.compat.fastembed import (
    LateInteractionTextEmbedding,
    SparseEmbedding,
    SparseTextEmbedding,
    TextEmbedding,
)
from m3_runtime.ignored import IgnoredArgumentWarning

OPENED = {"variant": "onnx-fp32", "threads": 1}
KINDS = [TextEmbedding, SparseTextEmbedding, LateInteractionTextEmbedding]


@pytest.fixture(scope="module")
def made(tiny_bundle):
    embeddings = {kind: kind(str(tiny_bundle), **OPENED) for kind in KINDS}
    yield embeddings
    for embedding in embeddings.values():
        embedding.close()


def plain(vector):
    return vector.as_dict() if isinstance(vector, SparseEmbedding) else vector.tolist()


def test_each_head_gives_what_encode_gives(made, encoder, texts):
    np.testing.assert_array_equal(list(made[TextEmbedding].embed(texts)), encoder.encode(texts).dense_vecs)
    expected = encoder.encode(texts, return_dense=False, return_sparse=True, return_colbert_vecs=True)
    for found, rows in zip(made[LateInteractionTextEmbedding].embed(texts), expected.colbert_vecs, strict=True):
        np.testing.assert_array_equal(found, rows)
    for found, (ids, weights) in zip(made[SparseTextEmbedding].embed(texts), expected.sparse.rows(), strict=True):
        np.testing.assert_array_equal(found.indices, ids)
        np.testing.assert_array_equal(found.values, weights)
        assert found.as_object() == {"values": found.values, "indices": found.indices}
        assert found.as_dict() == {int(token): weight for token, weight in zip(ids, weights.tolist(), strict=True)}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_queries_and_single_texts_give_the_same(made, texts, kind):
    whole = [plain(vector) for vector in made[kind].embed(texts)]
    for found in (
        made[kind].embed(iter(texts), batch_size=3),
        made[kind].passage_embed(tuple(texts), batch_size=1),
        made[kind].query_embed(texts, parallel=None),
    ):
        assert [plain(vector) for vector in found] == whole
    assert [plain(vector) for vector in made[kind].query_embed(texts[0])] == whole[:1]
    assert list(made[kind].embed([])) == []


def test_texts_are_taken_as_they_are_needed(made):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield f"text {len(taken)}"

    vectors = made[TextEmbedding].embed(endless(), batch_size=4)
    assert [next(vectors).shape for _ in range(5)] == [(64,)] * 5
    assert len(taken) == 8


def test_sizes_and_counts(made, tiny_bundle, encoder, texts):
    geometry = encoder.bundle.manifest.geometry
    assert made[TextEmbedding].embedding_size == geometry.hidden_size
    assert made[LateInteractionTextEmbedding].embedding_size == geometry.colbert_dim
    assert LateInteractionTextEmbedding.get_embedding_size(str(tiny_bundle)) == geometry.colbert_dim
    assert TextEmbedding.get_embedding_size(tiny_bundle) == geometry.hidden_size
    counts = encoder.encode(texts).token_counts.tolist()
    assert made[SparseTextEmbedding].token_count(texts, batch_size=2) == sum(counts)
    assert made[TextEmbedding].token_count(texts[0]) == counts[0]
    assert made[TextEmbedding].model_name == str(tiny_bundle)


def test_a_text_is_cut_at_the_models_limit_and_that_is_logged(made, encoder, caplog):
    long = "word " * 600
    with caplog.at_level(logging.WARNING, "m3_runtime"):
        (found,) = made[TextEmbedding].embed(long)
    assert "1 of 1 texts had more tokens" in caplog.text
    np.testing.assert_array_equal(found, encoder.encode(long, max_length=encoder.max_tokens).dense_vecs)


def test_a_path_beside_the_name(tiny_bundle):
    made = TextEmbedding(
        "BAAI/bge-m3", "/nowhere", specific_model_path=str(tiny_bundle), local_files_only=True, lazy_load=True,
        providers=["CPUExecutionProvider"], cuda=False, **OPENED,
    )  # fmt: skip
    assert made.model_name == "BAAI/bge-m3"
    made.close()
    with pytest.raises(BundleNotFoundError, match="m3-export SOURCE OUT"):
        TextEmbedding()


@pytest.mark.parametrize(
    "asked",
    [{"cuda": True}, {"device_ids": [0]}, {"providers": ["CUDAExecutionProvider"]}, {"providers": [("X", {})]}],
)
def test_another_device_gives_a_warning(tiny_bundle, asked):
    with pytest.warns(IgnoredArgumentWarning, match="this runtime computes on the CPU"):
        TextEmbedding(tiny_bundle, **OPENED, **asked).close()


def test_several_processes_give_a_warning(made):
    with pytest.warns(IgnoredArgumentWarning, match="one engine computes"):
        assert len(list(made[TextEmbedding].embed(["a", "b"], parallel=0))) == 2


def test_what_cannot_be_is_named(made, tiny_bundle):
    with pytest.raises(InputError, match="extra_session_options"):
        TextEmbedding(tiny_bundle, extra_session_options={})
    with pytest.raises(InputError, match="text 3 must be a str, got NoneType"):
        list(made[TextEmbedding].embed(["a", "b", "c", None], batch_size=2))
    for wrong in (None, b"bytes", {"a": "b"}, 7):
        with pytest.raises(InputError, match="expected a text or texts"):
            list(made[SparseTextEmbedding].embed(wrong))
    with pytest.raises(InputError, match="batch_size"):
        list(made[TextEmbedding].embed(["a"], batch_size=0))


def test_a_head_that_the_bundle_lacks_is_named_at_once(bundle_copy):
    path = bundle_copy / "manifest.json"
    text = path.read_text().replace('"dense",\n    "sparse",\n    "colbert"', '"dense"')
    path.unlink()
    path.write_text(text)
    TextEmbedding(bundle_copy, **OPENED).close()
    for kind, head in ((SparseTextEmbedding, "sparse"), (LateInteractionTextEmbedding, "colbert")):
        with pytest.raises(HeadError, match=head):
            kind(bundle_copy, **OPENED)


def test_a_sparse_embedding_goes_both_ways():
    for weights in ({7: 0.5, 3: 0.25}, {}):
        assert SparseEmbedding.from_dict(weights).as_dict() == weights
