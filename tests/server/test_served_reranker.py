"""A reranker's bundle in the server, beside an encoder and alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from in_process import served

from m3_runtime import InputError, M3Reranker
from m3_runtime.server.settings import ServedBundle

QUERY = "what is a vector"
DOCUMENTS = ["the model is a text", "a vector is a dense query", "что не", "a vector " * 400]
BODY = {"query": QUERY, "texts": DOCUMENTS}


@pytest.fixture(scope="module")
def beside(tiny_bundle, reranker_bundle):
    with served(tiny_bundle, reranker=ServedBundle(reranker_bundle, threads=1, variant="onnx-fp32")) as client:
        yield client


@pytest.fixture(scope="module")
def alone(reranker_bundle):
    with served(reranker_bundle) as client:
        yield client


@pytest.fixture(scope="module")
def scores(reranker_bundle):
    """Of `M3Reranker`, before the sigmoid and after."""
    pairs = [(QUERY, text) for text in DOCUMENTS]
    with M3Reranker.open(reranker_bundle, variant="onnx-fp32", threads=1) as reranker:
        return [reranker.score_pairs(pairs).values(normalize=normalize) for normalize in (False, True)]


@pytest.fixture(params=["beside", "alone"])
def client(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/reranker/rerank"])
def test_ranks_and_documents_are_scored_by_the_reranker(client, scores, path):
    raw, normal = scores
    order = sorted(range(len(raw)), key=lambda i: -raw[i])
    for raw_scores, expected in ((False, normal), (True, raw)):
        answer = client.post(path, json={**BODY, "raw_scores": raw_scores})
        assert answer.json() == [{"index": i, "score": expected[i]} for i in order]
        assert answer.headers["x-m3-scored-by"] == "score"
        assert answer.headers["x-m3-truncated-texts"] == "3"
    found = client.post(path, json={"query": QUERY, "documents": DOCUMENTS, "top_n": 2}).json()
    assert found["results"] == [{"index": i, "relevance_score": normal[i]} for i in order[:2]]
    assert found["scored_by"] == ["score"]
    assert found["model"] == "tiny-random-reranker"
    assert found["meta"]["warnings"][0] == "1 text was cut to the limit of tokens: document 3"


def test_pairs_count_with_all_their_tokens(client, reranker_bundle):
    with M3Reranker.open(reranker_bundle, variant="onnx-fp32", threads=1) as reranker:
        tokens = int(reranker.score_pairs([(QUERY, text) for text in DOCUMENTS]).token_counts.sum())
    before = metric(client, "m3_pairs_total")
    found = client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS}).json()
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert metric(client, "m3_pairs_total") == before + len(DOCUMENTS)


def metric(client, name):
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"query": " ", "texts": DOCUMENTS}, 422, "query is empty"),
        ({"query": QUERY, "texts": ["a", ""]}, 422, "texts[1] is empty"),
        ({"query": QUERY, "documents": ["a", {"text": ""}]}, 422, "documents[1] is empty"),
        ({**BODY, "truncate": False}, 413, "texts[3] has 800 tokens"),
        ({"query": "a " * 600, "texts": ["a"], "truncate": False}, 413, "query has 600 tokens"),
        ({**BODY, "truncate_prompt_tokens": 5}, 422, "truncate_prompt_tokens must be at least 6"),
        ({**BODY, "truncate_prompt_tokens": 600}, 422, "truncate_prompt_tokens is 600"),
        (
            {"query": "a " * 30, "texts": ["a"], "truncate_prompt_tokens": 12},
            422,
            "query has 9 tokens, which leave",
        ),
        ({**BODY, "max_tokens_per_doc": 9}, 422, "max_tokens_per_doc must be at least 512"),
        ({**BODY, "prompt_name": "query"}, 422, "prompt_name"),
    ],
)
def test_refusals_name_the_item(client, body, status, named):
    answer = client.post("/rerank", json=body)
    assert answer.status_code == status, answer.text
    assert named in answer.json()["error"]
    problem = client.post("/v1/rerank", json=body).json()["error"]
    assert problem["message"] == answer.json()["error"]
    assert problem["param"] is None or problem["message"].startswith(problem["param"])


def test_mode_and_weights_choose_the_encoders_heads_where_there_is_one(beside, alone, app):
    for more in ({"mode": "dense"}, {"mode": "hybrid"}, {"weights": {"dense": 1, "sparse": 0, "colbert": 1}}):
        heads = beside.post("/rerank", json={**BODY, **more})
        assert heads.json() == app.post("/rerank", json={**BODY, **more}).json()
        assert "score" not in heads.headers["x-m3-scored-by"]
        refused = alone.post("/rerank", json={**BODY, **more})
        assert refused.status_code == 422
        assert "an encoder's heads" in refused.json()["error"]


def test_what_it_says_of_itself(beside, alone, app):
    assert app.get("/info").json()["reranker"] is None
    info = beside.get("/info").json()
    assert list(info["model_type"]) == ["embedding"]
    assert info["reranker"] == "tiny-random-reranker"
    for other in (beside.get("/reranker/info").json(), alone.get("/info").json(), alone.get("/reranker/info").json()):
        assert other["model_type"] == {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}
        assert other["model_id"] == "tiny-random-reranker"
        assert other["heads"] == ["score"]
        assert other["max_input_length"] == 512
        assert other["max_client_batch_size"] == 2047  # the query is a text too
    spaces = [line for line in beside.get("/metrics").text.splitlines() if line.startswith("m3_build_info{")]
    assert len(spaces) == 2


def test_models_lists_the_reranker_beside_the_encoder(beside, alone, app):
    encoder, reranker = beside.get("/v1/models").json()["data"]
    assert beside.get("/models").json() == beside.get("/v1/models").json()
    assert [{**model, "id": encoder["id"]} for model in app.get("/v1/models").json()["data"]] == [encoder, encoder]
    assert [reranker] == alone.get("/v1/models").json()["data"]
    assert (encoder["id"], encoder["capabilities"]) == ("tiny-random", ["embed", "rerank"])
    assert (reranker["id"], reranker["capabilities"]) == ("tiny-random-reranker", ["rerank"])
    assert encoder["space_id"] != reranker["space_id"]
    for name in (reranker["id"], reranker["space_id"]):
        assert beside.get(f"/v1/models/{name}").json() == reranker
    assert beside.get(f"/v1/models/{encoder['space_id']}").json() == encoder
    assert beside.get("/reranker/info").json()["model_names"] == [reranker["id"], reranker["space_id"]]
    assert beside.get("/info").json()["model_names"] == [encoder["id"], encoder["space_id"]]
    unknown = beside.get("/v1/models/other")
    assert unknown.status_code == 404
    assert reranker["id"] in unknown.json()["error"]["message"]
    refused = beside.post("/v1/embeddings", json={"input": "a", "model": reranker["id"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "model")


def test_alone_it_has_rerank_routes_only(alone):
    for path in ("/embed", "/v1/embeddings", "/m3/encode", "/similarity", "/embed_sparse"):
        answer = alone.post(path, json={"inputs": "a", "input": "a", "texts": ["a"]})
        assert answer.status_code == 404
        assert "a reranker is served alone" in answer.text
    assert alone.get("/").text == "alive"
    assert alone.get("/v1/models").json()["data"][0]["id"] == "tiny-random-reranker"
    assert [token["text"] for token in alone.post("/tokenize", json={"inputs": "a"}).json()[0]] == ["<s>", "a", "</s>"]


def test_vectors_and_scores_at_the_same_time_are_as_ever(beside, app, scores):
    embed = {"inputs": DOCUMENTS}
    vectors, ranks = app.post("/embed", json=embed).json(), sorted(scores[1], reverse=True)

    def both(number):
        if number % 2:
            return beside.post("/embed", json=embed).json() == vectors
        return [rank["score"] for rank in beside.post("/rerank", json=BODY).json()] == ranks

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(both, range(12)))


def test_names_are_those_of_the_model_that_is_served(reranker_bundle):
    with served(reranker_bundle, model_names=("BAAI/bge-reranker-v2-m3",)) as client:
        assert client.get("/info").json()["model_id"] == "BAAI/bge-reranker-v2-m3"
        found = client.post("/v1/rerank", json={"query": QUERY, "documents": ["a"]}).json()
        assert found["model"] == "BAAI/bge-reranker-v2-m3"


def test_a_limit_below_a_pair_is_refused(reranker_bundle):
    with pytest.raises(InputError, match="max_length must be at least 6"), served(reranker_bundle, max_length=4):
        pass
