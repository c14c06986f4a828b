"""Every route's answer, held against the encoder."""

import io

import numpy as np
import pytest
import safetensors.numpy

from m3_runtime import PackedRows

ALL = {"return_sparse": True, "return_colbert_vecs": True}


def test_embed(server, encoder, texts):
    answer = server.post("/embed", {"inputs": texts})
    np.testing.assert_array_equal(np.array(answer.json(), np.float32), encoder.encode(texts).dense_vecs)


def test_embed_sparse(server, encoder, texts):
    rows = server.post("/embed_sparse", {"inputs": texts}).json()
    found = [{str(entry["index"]): np.float32(entry["value"]) for entry in row} for row in rows]
    assert found == encoder.encode(texts, return_dense=False, return_sparse=True)["lexical_weights"]


def test_embed_all(server, encoder, texts):
    found = server.post("/embed_all", {"inputs": texts}).json()
    expected = encoder.encode(texts, return_dense=False, return_colbert_vecs=True)["colbert_vecs"]
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.array(mine, np.float32), theirs)


def test_similarity(server, encoder, texts):
    body = {"inputs": {"source_sentence": texts[0], "sentences": texts[1:]}}
    vectors = encoder.encode(texts).dense_vecs
    np.testing.assert_allclose(server.post("/similarity", body).json(), vectors[1:] @ vectors[0], atol=1e-6)


@pytest.mark.parametrize("mode", ["dense", "sparse", "colbert", "hybrid"])
def test_rerank(server, encoder, texts, mode):
    weights = {"dense": 0.4, "sparse": 0.2, "colbert": 0.4}
    body = {"query": texts[0], "texts": texts[1:], "mode": mode, "weights": weights, "return_text": True}
    ranks = server.post("/rerank", body).json()
    pairs = [(texts[0], passage) for passage in texts[1:]]
    scores = encoder.compute_score(pairs, weights_for_different_modes=[0.4, 0.2, 0.4])
    expected = scores["colbert+sparse+dense" if mode == "hybrid" else mode]
    assert sorted(rank["index"] for rank in ranks) == list(range(len(pairs)))
    assert [rank["score"] for rank in ranks] == sorted((rank["score"] for rank in ranks), reverse=True)
    for rank in ranks:
        assert rank["score"] == pytest.approx(expected[rank["index"]], abs=1e-5)
        assert rank["text"] == texts[1 + rank["index"]]


def test_a_long_rerank_scores_as_short_ones_do(server):
    """Above 16384 tokens passages are scored in parts."""
    passages = [f"{'wort ' * 95}{i}" for i in range(39)]

    def scores(some: list[str]) -> dict[str, float]:
        ranks = server.post("/rerank", {"query": "ein wort", "texts": some, "return_text": True}).json()
        return {rank["text"]: rank["score"] for rank in ranks}

    long = scores(passages)
    assert long == pytest.approx({**scores(passages[:20]), **scores(passages[20:])}, abs=1e-6)
    assert len(long) == 39


def test_tokenize(server, encoder, texts):
    found = server.post("/tokenize", {"inputs": texts}).json()
    ids = encoder.tokenizer.encode_batch(texts, 512).ids
    for text, tokens, expected in zip(texts, found, ids, strict=True):
        assert [token["id"] for token in tokens] == expected.tolist()
        assert [token["special"] for token in tokens] == [True, *[False] * (len(tokens) - 2), True]
        assert all(text[t["start"] : t["stop"]] == t["text"] for t in tokens if not t["special"])
    bare = server.post("/tokenize", {"inputs": "one two", "add_special_tokens": False}).json()
    assert not any(token["special"] for token in bare[0])


def test_info(server, encoder):
    info = server.client.get("/info").json()
    assert info["model_id"] == encoder.bundle.manifest.source.name
    assert info["max_input_length"] == encoder.max_tokens
    assert info["max_client_batch_size"] == 40
    assert (info["space_id"], info["variant"]) == (encoder.space_id, "onnx-fp32")


def test_encode_as_json(server, encoder, texts):
    found = server.post("/m3/encode", {"texts": texts}).json()
    expected = encoder.encode(texts, **ALL)
    assert found["space_id"] == encoder.space_id
    assert found["token_counts"] == expected.token_counts.tolist()
    np.testing.assert_array_equal(np.array(found["dense_vecs"], np.float32), expected.dense_vecs)
    for mine, theirs in zip(found["lexical_weights"], expected["lexical_weights"], strict=True):
        assert {key: np.float32(weight) for key, weight in mine.items()} == theirs
        assert list(mine) == list(theirs)
    for mine, theirs in zip(found["colbert_vecs"], expected.colbert_vecs, strict=True):
        np.testing.assert_array_equal(np.array(mine, np.float32), theirs)


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_encode_as_arrays(server, encoder, texts, form):
    answer = server.post("/m3/encode", {"texts": texts, "format": form})
    if form == "npz":
        found = dict(np.load(io.BytesIO(answer.content), allow_pickle=False))
    else:
        found = safetensors.numpy.load(answer.content)
    expected = encoder.encode(texts, **ALL)
    assert answer.headers["x-m3-space-id"] == encoder.space_id
    np.testing.assert_array_equal(found["dense_vecs"], expected.dense_vecs)
    np.testing.assert_array_equal(found["sparse_indptr"], expected.sparse.indptr)
    np.testing.assert_array_equal(found["sparse_ids"], expected.sparse.ids)
    np.testing.assert_array_equal(found["sparse_weights"], expected.sparse.weights)
    np.testing.assert_array_equal(found["colbert_vecs"], np.concatenate(expected.colbert_vecs))
    assert found["colbert_indptr"].tolist() == [0, *np.cumsum(expected.token_counts - 1)]


def test_encode_with_some_heads_half_precision_and_cutting(server, encoder, texts):
    body = {"texts": texts[3], "heads": ["colbert"], "format": "npz", "colbert_dtype": "float16"}
    answer = server.post("/m3/encode", {**body, "max_length": 8, "truncate": True})
    found = dict(np.load(io.BytesIO(answer.content), allow_pickle=False))
    assert found.keys() == {"token_counts", "colbert_indptr", "colbert_vecs"}
    expected = encoder.encode(
        texts[3], max_length=8, return_dense=False, return_colbert_vecs=True, colbert_dtype="float16"
    )
    np.testing.assert_array_equal(found["colbert_vecs"], expected.colbert_vecs)
    assert answer.headers["x-m3-truncated"] == "1"


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4", "binary"])
def test_colbert_rows_in_every_form(server, encoder, texts, dtype):
    more = {"colbert_dtype": dtype, "colbert_dim": 5, "colbert_pool": 2}
    expected = encoder.encode(texts, return_dense=False, return_colbert_vecs=True, **more).colbert_vecs
    body = {"texts": texts, "heads": ["colbert"], **more}
    found = server.post("/m3/encode", body).json()
    said = {"colbert_dim": 5, "colbert_space_id": encoder.colbert_space_id(5)}
    assert said.items() <= found.items()
    for row, theirs in enumerate(expected):
        if not isinstance(theirs, PackedRows):
            assert found["colbert_scales"] is None
            np.testing.assert_array_equal(np.array(found["colbert_vecs"][row], dtype), theirs)
            continue
        assert found["colbert_vecs"][row] == theirs.values.tolist()
        np.testing.assert_array_equal(np.array(found["colbert_scales"][row], np.float32), theirs.scales)
    for form in ("npz", "safetensors"):
        content = server.post("/m3/encode", {**body, "format": form}).content
        arrays = np.load(io.BytesIO(content)) if form == "npz" else safetensors.numpy.load(content)
        rows = arrays["colbert_vecs"]
        if dtype in ("int8", "int4", "binary"):
            rows = PackedRows(dtype, rows, arrays["colbert_scales"], int(arrays["colbert_dim"]))
        np.testing.assert_array_equal(rows, np.concatenate(expected))
        starts = np.cumsum([0, *map(len, expected)])
        assert arrays["colbert_indptr"].tolist() == starts.tolist()
        if form == "npz":
            assert arrays["colbert_space_id"] == said["colbert_space_id"]


def test_operation(server):
    assert server.client.get("/health").text == "alive"
    before = server.metric("m3_tokens_total")
    server.post("/embed", {"inputs": "some words"})
    assert server.metric("m3_tokens_total") > before
    page = server.client.get("/metrics").text
    for name in ("queue_tokens", "queue_seconds_bucket", "tokenize_seconds_sum", "engine_seconds_count"):
        assert f"m3_{name}" in page
    assert 'variant="onnx-fp32"' in page
    paths = server.client.get("/openapi.json").json()["paths"]
    assert {"/v1/embeddings", "/embed", "/embed_sparse", "/embed_all", "/rerank", "/m3/encode"} <= paths.keys()
    assert "access-control-allow-origin" not in server.client.get("/info", headers={"origin": "http://x"}).headers
