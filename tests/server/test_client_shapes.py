"""Requests in the exact shapes of products, and the fields that those read from the answer.

Each test stands for a row of docs/operate/clients.md, which names it.
"""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from in_process import served

PAGE = Path(__file__).parents[2] / "docs" / "operate" / "clients.md"
CHUNKS = ["what is a vector", "the model is a text", "search the sparse token"]


def floats(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]], np.float32)


@pytest.fixture(scope="module")
def expected(encoder) -> np.ndarray:
    return encoder.encode(CHUNKS).dense_vecs


def test_dify_openai_compatible(app, expected):
    """Validates with "ping", then sends texts; without a key the header is there and empty."""
    headers = {"Content-Type": "application/json", "Authorization": ""}
    ping = app.post("/v1/embeddings", json={"input": "ping", "model": "bge-m3"}, headers=headers)
    assert "embedding" in ping.json()["data"][0]
    body = {"input": CHUNKS, "model": "bge-m3", "encoding_format": "float"}
    answer = app.post("/v1/embeddings", json=body, headers=headers)
    np.testing.assert_array_equal(floats(answer), expected)
    assert answer.json()["usage"]["total_tokens"] > 0


def test_dify_tei_embedding(app, expected):
    """Adding it asks /info, then /tokenize and /v1/embeddings without a model; batches follow max_client_batch_size."""
    info = app.get("/info").json()
    assert next(iter(info["model_type"])) == "embedding"
    assert info["max_input_length"] == 512 and info["max_client_batch_size"] >= 1
    assert len(app.post("/tokenize", json={"inputs": CHUNKS}).json()) == 3
    answer = app.post("/v1/embeddings", json={"input": CHUNKS})
    np.testing.assert_array_equal(floats(answer), expected)
    assert {"prompt_tokens", "total_tokens"} <= answer.json()["usage"].keys()


def test_dify_tei_rerank(app):
    """The address ends with /reranker, since /info must say so; index, text and score are read."""
    info = app.get("/reranker/info").json()
    assert next(iter(info["model_type"])) == "reranker"
    answer = app.post("/reranker/rerank", json={"query": "vector", "texts": CHUNKS, "return_text": True})
    for rank in answer.json():
        assert rank["text"] == CHUNKS[rank["index"]]
        assert isinstance(rank["score"], float)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank"])
def test_dify_openai_compatible_rerank(app, path):
    body = {"model": "bge-m3", "query": "vector", "documents": CHUNKS, "top_n": None, "return_documents": True}
    answer = app.post(path, json=body, headers={"Authorization": "Bearer "})
    scores = [result["relevance_score"] for result in answer.json()["results"]]
    assert len(scores) == 3 and all(0 <= score <= 1 for score in scores)
    for result in answer.json()["results"]:
        assert result["document"]["text"] == CHUNKS[result["index"]]


def test_ragflow_tei(app, expected):
    """Its built-in embedding and HuggingFace provider: 16 texts, no key, no wish, and the original cuts."""
    body = {"inputs": [*CHUNKS, "a vector " * 600]}
    answer = app.post("/embed", json=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    np.testing.assert_array_equal(np.array(answer.json(), np.float32)[:3], expected)


def test_ragflow_openai_compatible(app, expected):
    body = {"input": CHUNKS, "model": "bge-m3", "encoding_format": "float", "drop_params": True}
    np.testing.assert_array_equal(floats(app.post("/v1/embeddings", json=body)), expected)


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/rerank", {"top_n": 3}),
        ("/rerank", {"top_n": 3}),
        ("/v1/rerank", {"return_documents": "true", "return_len": "true"}),
    ],
    ids=["jina", "openai", "xinference"],
)
def test_ragflow_rerank(app, path, more):
    """Jina, OpenAI-API-Compatible, and Xinference with booleans as texts; ranks are put back in order by index."""
    answer = app.post(path, json={"model": "bge-m3", "query": "vector", "documents": CHUNKS, **more}).json()
    ranks = np.full(3, np.nan)
    for result in answer["results"]:
        ranks[result["index"]] = result["relevance_score"]
    assert np.isfinite(ranks).all() and ranks.min() >= 0 and ranks.max() <= 1
    assert answer["usage"]["total_tokens"] > 0


def test_open_webui(app, expected):
    body = {"input": CHUNKS, "model": "bge-m3"}
    headers = {"Content-Type": "application/json", "Authorization": "Bearer ", "X-OpenWebUI-User-Name": "a"}
    np.testing.assert_array_equal(floats(app.post("/v1/embeddings", json=body, headers=headers)), expected)


def test_open_webui_external_reranker(app):
    """All documents must come back: they are sorted by index, and scores are read in that order."""
    body = {"model": "bge-m3", "query": "vector", "documents": CHUNKS, "top_n": 3}
    results = app.post("/v1/rerank", json=body, headers={"Authorization": "Bearer none"}).json()["results"]
    ordered = sorted(results, key=lambda result: result["index"])
    assert [result["index"] for result in ordered] == [0, 1, 2]
    assert all("relevance_score" in result for result in ordered)


def test_anythingllm(app, encoder):
    """500 chunks a request; the SDK for Node asks for base64."""
    texts = [f"a vector {n}" for n in range(500)]
    answer = app.post("/v1/embeddings", json={"model": "bge-m3", "input": texts, "encoding_format": "base64"}).json()
    found = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer["data"]]
    np.testing.assert_array_equal(found, encoder.encode(texts).dense_vecs)


def test_anythingllm_localai(app, expected):
    body = {"model": "bge-m3", "input": CHUNKS, "dimensions": None, "encoding_format": "float"}
    np.testing.assert_array_equal(floats(app.post("/v1/embeddings", json=body)), expected)


def test_fastgpt(app, expected):
    """One text or several; the reranker has an address of its own."""
    np.testing.assert_array_equal(
        floats(app.post("/v1/embeddings", json={"model": "bge-m3", "input": [CHUNKS[0]]})), expected[:1]
    )
    answer = app.post("/v1/rerank", json={"model": "bge-m3", "query": "vector", "documents": CHUNKS}).json()
    assert answer["id"]
    assert {"index", "relevance_score"} <= answer["results"][0].keys()


def test_cherry_studio(app, expected):
    """Embeddings through OpenAI's SDK with the dimensions of its own settings."""
    body = {"model": "bge-m3", "input": CHUNKS, "dimensions": 64, "encoding_format": "base64"}
    assert app.post("/v1/embeddings", json=body).status_code == 200


def test_cherry_studio_rerank(app):
    """Provider "TEI" posts texts to /v1/rerank; others post documents."""
    ranks = app.post("/v1/rerank", json={"query": "vector", "texts": CHUNKS, "return_text": True}).json()
    assert all({"index", "score"} <= rank.keys() for rank in ranks)
    body = {"model": "bge-m3", "query": "vector", "documents": CHUNKS, "top_k": 2}
    assert len(app.post("/v1/rerank", json=body).json()["results"]) == 2


def test_librechat_rag_api(app, tiny_bundle):
    """LangChain with its default: tiktoken's ids, which are refused with the switch to set; texts once it is set."""
    ids = [[9906, 1917], [15339, 374]]
    refused = app.post("/v1/embeddings", json={"input": ids, "model": "bge-m3", "encoding_format": "base64"})
    assert refused.status_code == 400
    assert "check_embedding_ctx_length=False" in refused.json()["error"]["message"]
    body = {"input": CHUNKS, "model": "text-embedding-3-small", "encoding_format": "base64"}
    assert app.post("/v1/embeddings", json=body).status_code == 404
    with served(tiny_bundle, is_any_model_served=True) as client:
        assert client.post("/v1/embeddings", json=body).status_code == 200


def test_milvus_tei_function(app, expected):
    """The server's own function: truncate only if set, with its direction; and the TEI ranker."""
    np.testing.assert_array_equal(np.array(app.post("/embed", json={"inputs": CHUNKS}).json(), np.float32), expected)
    body = {"inputs": CHUNKS, "truncate": True, "truncation_direction": "Right"}
    assert app.post("/embed", json=body).status_code == 200
    body = {"query": "vector", "texts": CHUNKS, "truncate": True, "truncation_direction": "Right"}
    assert {"index", "score"} <= app.post("/rerank", json=body).json()[0].keys()


def test_litellm_rerank(app):
    """hosted_vllm, cohere (/v2/rerank) and huggingface."""
    body = {"model": "bge-m3", "query": "vector", "documents": CHUNKS, "top_n": 2, "return_documents": True}
    for path in "/rerank", "/v1/rerank", "/v2/rerank":
        answer = app.post(path, json=body).json()
        assert isinstance(answer["results"][0]["document"]["text"], str)
        assert answer["usage"]["total_tokens"] == answer["meta"]["tokens"]["input_tokens"]
        assert answer["meta"]["billed_units"] == {"search_units": 1}
    body = {"query": "vector", "texts": CHUNKS, "raw_scores": False, "return_text": False, "truncate": False,
            "truncation_direction": "Left"}  # fmt: skip
    assert app.post("/rerank", json=body).status_code == 200
    assert app.post("/rerank", json=body | {"truncate": True}).status_code == 422  # a beginning is never cut off


def test_sagemaker(app, expected):
    assert app.get("/ping").status_code == 200
    np.testing.assert_array_equal(
        np.array(app.post("/invocations", json={"inputs": CHUNKS}).json(), np.float32), expected
    )


def test_every_row_of_the_page_is_a_test():
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    own = {name for name in globals() if name.startswith("test_")} - {"test_every_row_of_the_page_is_a_test"}
    others = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert own <= named
    assert [name for name in sorted(named) if f"def {name}(" not in others] == []
