"""What clients send that is meant well: numbers as texts, nulls, addresses put together twice, whole small routes."""

import json

import numpy as np
import pytest
from in_process import changed_bundle, served

from m3_runtime.errors import BundleFormatError


@pytest.mark.parametrize("dimensions", [64, 64.0, "64", "64.0", None])
@pytest.mark.parametrize(
    ("path", "field"), [("/v1/embeddings", "input"), ("/embed", "inputs"), ("/m3/encode", "texts")]
)
def test_the_models_own_dimensions(app, path, field, dimensions):
    plain = app.post(path, json={field: "a"}).json()
    assert app.post(path, json={field: "a", "dimensions": dimensions}).json() == plain


@pytest.mark.parametrize("dimensions", [0, -1, 16, 1024, 1536, "256", 10**20])
@pytest.mark.parametrize(
    ("path", "field"), [("/v1/embeddings", "input"), ("/embed", "inputs"), ("/m3/encode", "texts")]
)
def test_other_dimensions_are_refused_with_the_number_to_set(app, path, field, dimensions):
    answer = app.post(path, json={field: "a", "dimensions": dimensions})
    assert answer.status_code == (400 if path.startswith("/v1") else 422)
    assert f"dimensions must be 64 or left out, got {dimensions}" in answer.text


@pytest.mark.parametrize("dimensions", [True, 64.5, "many", [64], {}, ""])
def test_what_is_no_number(app, dimensions):
    answer = app.post("/v1/embeddings", json={"input": "a", "dimensions": dimensions})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "dimensions"


def test_colbert_rows_have_a_size_of_their_own(app):
    rows = app.post("/embed_all", json={"inputs": "a", "dimensions": 24}).json()[0]
    assert len(rows[0]) == 24
    answer = app.post("/embed_all", json={"inputs": "a", "dimensions": 64})
    assert answer.status_code == 422
    assert "dimensions must be 24 or left out" in answer.json()["error"]


def shortened(vectors, size):
    cut = np.array(vectors)[:, :size]
    return cut / np.linalg.norm(cut, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("config", "taken", "refused"),
    [
        ({"matryoshka_dimensions": [16, 32, 64]}, (16, 32, 64), (8, 48, 128)),
        ({"is_matryoshka": True}, (1, 63, 64), (0, 65)),
        ({"is_matryoshka": False}, (64,), (32,)),
    ],
)
def test_a_checkpoint_that_was_trained_for_less(tiny_bundle, tmp_path, encoder, config, taken, refused):
    whole = json.loads((tiny_bundle / "config.json").read_text())
    bundle = changed_bundle(tiny_bundle, tmp_path / "b", {"config.json": whole | config})
    own = encoder.encode(["a", "a vector"]).dense_vecs
    with served(bundle) as client:
        for size in taken:
            body = {"input": ["a", "a vector"], "dimensions": size}
            data = client.post("/v1/embeddings", json=body).json()["data"]
            np.testing.assert_allclose([item["embedding"] for item in data], shortened(own, size), atol=1e-6)
            found = client.post("/embed", json={"inputs": body["input"], "dimensions": size}).json()
            np.testing.assert_allclose(found, shortened(own, size), atol=1e-6)
            encoded = client.post("/m3/encode", json={"texts": body["input"], "dimensions": size}).json()
            np.testing.assert_allclose(encoded["dense_vecs"], shortened(own, size), atol=1e-6)
            assert len(encoded["colbert_vecs"][0][0]) == 24
        for size in refused:
            answer = client.post("/v1/embeddings", json={"input": "a", "dimensions": size})
            assert answer.status_code == 400
            assert "dimensions must be 64" in answer.json()["error"]["message"]
        assert client.get("/info").json()["smaller_dimensions"] == [
            size
            for size in range(64)
            if size in taken or ("is_matryoshka" in config and config["is_matryoshka"] and size)
        ]


@pytest.mark.parametrize("sizes", ["16", [16, "x"], {"a": 1}, [None]])
def test_a_checkpoint_that_says_nonsense_of_its_dimensions(tiny_bundle, tmp_path, sizes):
    bundle = changed_bundle(tiny_bundle, tmp_path / "b", {"config.json": {"matryoshka_dimensions": sizes}})
    with pytest.raises(BundleFormatError, match="matryoshka_dimensions must be a list of integers"), served(bundle):
        pass


def test_dimensions_that_nobody_trained_for(tiny_bundle, encoder):
    with served(tiny_bundle, cuts_dimensions=True) as client:
        found = client.post("/embed", json={"inputs": ["a", "a vector"], "dimensions": 40}).json()
        np.testing.assert_allclose(found, shortened(encoder.encode(["a", "a vector"]).dense_vecs, 40), atol=1e-6)
        losses = client.get("/info").json()["dimension_losses"]
        assert [loss["dimensions"] for loss in losses] == [32, 16, 8]
        changes = [loss["cosine_change_mean"] for loss in losses]
        assert 0 < changes[0] < changes[1] < changes[2] < 1
        assert len({loss["own_passage_first_whole"] for loss in losses}) == 1
        answer = client.post("/embed", json={"inputs": "a", "dimensions": 65})
        assert "dimensions must be 64, any smaller size, or left out, got 65" in answer.json()["error"]


def test_nulls_mean_nothing(app):
    bodies = {
        "/v1/embeddings": ({"input": "a"}, ("model", "encoding_format", "dimensions", "user", "truncate", "input_type",
                                            "truncate_prompt_tokens", "prompt_name", "normalize", "metadata")),
        "/embed": ({"inputs": "a"}, ("truncate", "truncation_direction", "normalize", "dimensions", "prompt_name")),
        "/rerank": ({"query": "a", "texts": ["b"]}, ("raw_scores", "return_text", "truncate", "mode", "weights",
                                                     "model", "documents", "top_n", "prompt_name")),
        "/tokenize": ({"inputs": "a"}, ("add_special_tokens", "prompt_name")),
        "/decode": ({"ids": [5]}, ("skip_special_tokens",)),
        "/m3/encode": ({"texts": "a"}, ("heads", "max_length", "truncate", "format", "colbert_dtype", "dimensions")),
        "/similarity": ({"inputs": {"source_sentence": "a", "sentences": ["b"]}}, ("parameters",)),
    }  # fmt: skip
    for path, (body, fields) in bodies.items():
        answer = app.post(path, json=body | dict.fromkeys(fields))
        assert answer.status_code == 200, answer.text
        assert answer.json() == app.post(path, json=body).json()


def test_empty_texts_are_texts(app):
    assert len(app.post("/v1/embeddings", json={"input": ["", "a", " "]}).json()["data"]) == 3
    assert len(app.post("/v1/embeddings", json={"input": ""}).json()["data"]) == 1


@pytest.mark.parametrize(
    "path",
    ["/v1/embeddings", "/embeddings", "/v1/embeddings/", "/embeddings/", "/v1/v1/embeddings", "//v1/embeddings",
     "/v1//embeddings", "/v1/v1/v1/embeddings/"],
)  # fmt: skip
def test_addresses_of_embeddings(app, path):
    answer = app.post(path, json={"input": "a"}, follow_redirects=False)
    assert answer.status_code == 200
    refused = app.post(path, json={"input": 5}, follow_redirects=False)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")


@pytest.mark.parametrize("path", ["/embed", "/embed/", "/", "/invocations", "/reranker/embed"])
def test_addresses_of_embed(app, path):
    assert (
        app.post(path, json={"inputs": "a"}, follow_redirects=False).json()
        == app.post("/embed", json={"inputs": "a"}).json()
    )


@pytest.mark.parametrize("path", ["/ping", "/health", "/health/", "/reranker/health"])
def test_addresses_of_health(app, path):
    assert (app.get(path).status_code, app.head(path).status_code) == (200, 200)


def test_addresses_of_models(app):
    for path in ("/v1/models", "/models", "/v1/models/", "/v1/v1/models"):
        assert app.get(path).json()["data"][0]["id"] == "BAAI/bge-m3"
    assert app.get("/models/embedder").json()["id"] == "embedder"


def test_the_bare_address(app, tiny_bundle):
    assert app.get("/").text.startswith("<!doctype html>")
    assert app.head("/").status_code == 200
    with served(tiny_bundle, has_ui=False) as client:
        assert (client.get("/").text, client.head("/").status_code) == ("alive", 200)
        assert client.post("/", json={"inputs": "a"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/nothing", "/v1", "/embeddings/x", "/v3/rerank", "/reranker", "/reranker/"]
)
def test_what_is_not_there_names_what_is(app, path):
    answer = app.post(path, json={})
    assert answer.status_code == 404
    assert "POST /v1/embeddings or /embed" in answer.text


def test_info_as_text_embeddings_inference_gives_it(app):
    """Dify's provider takes the first key of `model_type`; which it must be depends on what the model is for."""
    info = app.get("/info").json()
    assert {
        "model_id",
        "model_sha",
        "model_dtype",
        "served_model_name",
        "max_input_length",
        "sha",
        "docker_label",
    } <= info.keys()
    assert list(info["model_type"]) == ["embedding"]
    other = app.get("/reranker/info").json()
    assert list(other["model_type"]) == ["reranker"]
    texts = info["max_client_batch_size"] - 1  # beside the query
    assert other == {**info, "model_type": other["model_type"], "max_client_batch_size": texts}


def test_decode(app, encoder):
    texts = ["what is a vector", "the model"]
    ids = [row.tolist() for row in encoder.tokenizer.encode_batch(texts, 512).ids]
    assert app.post("/decode", json={"ids": ids}).json() == texts
    assert app.post("/decode", json={"ids": ids[0]}).json() == texts[:1]
    assert app.post("/decode", json={"ids": ids[0], "skip_special_tokens": False}).json()[0].startswith("<s>")
    assert app.post("/decode", json={"ids": [[]]}).json() == [""]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([560], "ids[0][0] is 560, which is no token id: they go from 0 to 559"),
        ([[5], [6, -1]], "ids[1][1] is -1"),
        ([[5], 6], "ids[1] must be a list of token ids, got a number"),
        ([True], "ids[0] must be a token id, got a boolean"),
        ([], "ids must hold at least one"),
        ("5", "ids must be a list of token ids"),
        (None, "ids must be a list of token ids"),
    ],
)
def test_what_cannot_be_decoded(app, ids, message):
    answer = app.post("/decode", json={"ids": ids})
    assert answer.status_code == 422
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/embed", rb'{"inputs": ["a", "b\ud800c"]}', "inputs[1]"),
        ("/v1/embeddings", rb'{"input": "\uDC00"}', "input"),
        ("/v1/rerank", rb'{"query": "q", "documents": ["a", {"text": "\ud83d"}]}', "documents[1].text"),
        ("/similarity", rb'{"inputs": {"source_sentence": "a", "sentences": ["\ud83d x"]}}', "inputs.sentences[0]"),
        ("/tokenize", rb'{"inputs": ["\ud83d\ud83d"]}', "inputs[0]"),
        ("/m3/encode", rb'{"texts": [["\ud83d"]]}', "texts[0][0]"),
    ],
)
def test_half_a_character_is_named(app, path, body, name):
    answer = app.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == (400 if path.startswith("/v1") else 422)
    assert f"the body is not JSON: {name} has a lone surrogate (U+D" in answer.text


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/plain", "multipart/form-data"])
@pytest.mark.parametrize("path", ["/embed", "/v1/embeddings", "/v1/rerank", "/m3/encode", "/tokenize"])
def test_a_body_that_does_not_say_that_it_is_json(app, path, kind):
    answer = app.post(path, content=b'{"inputs": "a"}', headers={} if kind is None else {"content-type": kind})
    assert answer.status_code == (400 if path.startswith("/v1") else 422)
    assert "send the header content-type: application/json" in answer.text


def test_a_compressed_body_is_named(app):
    for name, status in ("gzip", 422), ("identity", 200):
        answer = app.post("/embed", json={"inputs": "a"}, headers={"content-encoding": name})
        assert answer.status_code == status
        assert status == 200 or "content-encoding: gzip; do not compress it" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({}, 400, "missing_required_parameter", "input"),
        ({"input": []}, 400, "empty_array", "input"),
        ({"input": ["a", 5]}, 400, "invalid_type", "input[1]"),
        ({"input": "a", "encoding_format": "int8"}, 400, "invalid_value", "encoding_format"),
        ({"input": "a", "dimensions": 5}, 400, "invalid_value", "dimensions"),
        ({"input": "a", "model": "gpt"}, 404, "model_not_found", "model"),
        ({"input": ["a", "wort " * 2000]}, 400, "context_length_exceeded", "input[1]"),
        ({"input": ["a"] * 5000}, 400, "array_above_max_length", None),
    ],
)
def test_errors_as_openai_gives_them(app, body, status, code, param):
    answer = app.post("/v1/embeddings", json=body)
    problem = answer.json()["error"]
    assert (answer.status_code, problem["code"], problem["param"]) == (status, code, param)
    assert problem["type"] == "invalid_request_error"
    assert problem["message"]
