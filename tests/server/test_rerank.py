"""Rerank as Jina's, Cohere's and text-embeddings-inference's clients ask for it."""

import pytest
from in_process import changed_bundle, served

PATHS = ["/rerank", "/v1/rerank", "/v2/rerank", "/v1/v1/rerank", "/v1/v2/rerank", "/rerank/", "/reranker/rerank"]
QUERY = "what is a vector"
DOCUMENTS = ["the model is a text", "a vector is a dense query", "что не"]


def ask(client, path="/v1/rerank", **fields):
    answer = client.post(path, json={"query": QUERY, **fields})
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("path", PATHS)
def test_documents_are_answered_by_an_object(app, encoder, path):
    answer = ask(app, path, documents=DOCUMENTS, model="whatever")
    found = answer.json()
    scores = encoder.compute_score([(QUERY, text) for text in DOCUMENTS])["colbert+sparse+dense"]
    order = sorted(range(3), key=lambda i: -scores[i])
    assert [result["index"] for result in found["results"]] == order
    for result in found["results"]:
        assert result.keys() == {"index", "relevance_score"}
        assert result["relevance_score"] == pytest.approx(min(1, max(0, scores[result["index"]])), abs=1e-5)
    tokens = int(encoder.encode([QUERY, *DOCUMENTS]).token_counts.sum())
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert found["meta"]["tokens"]["input_tokens"] == tokens
    assert found["scored_by"] == ["dense", "sparse", "colbert"]
    assert answer.headers["x-m3-scored-by"] == "dense,sparse,colbert"
    assert found["model"] == "BAAI/bge-m3"
    assert found["id"] != ask(app, path, documents=DOCUMENTS).json()["id"]


@pytest.mark.parametrize("path", PATHS)
def test_texts_are_answered_by_a_list(app, encoder, path):
    answer = ask(app, path, texts=DOCUMENTS, return_text=True, raw_scores="false")
    scores = encoder.compute_score([(QUERY, text) for text in DOCUMENTS])["colbert+sparse+dense"]
    for rank in answer.json():
        assert rank["score"] == pytest.approx(scores[rank["index"]], abs=1e-5)
        assert rank["text"] == DOCUMENTS[rank["index"]]
    assert answer.headers["x-m3-scored-by"] == "dense,sparse,colbert"


def test_objects_with_a_text_are_documents(app):
    objects = [{"text": text, "title": "t", "id": 5} for text in DOCUMENTS]
    mixed = [DOCUMENTS[0], *objects[1:]]
    results = [ask(app, documents=documents).json()["results"] for documents in (DOCUMENTS, objects, mixed)]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("flag", [True, "true", "True", "TRUE"])
def test_the_documents_come_back_if_asked_for(app, flag):
    found = ask(app, documents=[{"text": text} for text in DOCUMENTS], return_documents=flag, return_len="true").json()
    assert [result["document"] for result in found["results"]] == [
        {"text": DOCUMENTS[result["index"]]} for result in found["results"]
    ]
    for no in (False, "false", None):
        assert "document" not in ask(app, documents=DOCUMENTS, return_documents=no).json()["results"][0]


@pytest.mark.parametrize(("top_n", "number"), [(None, 3), (0, 3), (1, 1), ("2", 2), (2.0, 2), (3, 3), (99, 3)])
def test_so_many_of_the_best(app, top_n, number):
    whole = ask(app, documents=DOCUMENTS).json()["results"]
    for name in ("top_n", "top_k"):
        assert ask(app, documents=DOCUMENTS, **{name: top_n}).json()["results"] == whole[:number]
        assert len(ask(app, texts=DOCUMENTS, **{name: top_n}).json()) == number


def test_scores_do_not_depend_on_the_other_documents(app):
    alone = [ask(app, documents=[text]).json()["results"][0]["relevance_score"] for text in DOCUMENTS]
    together = {r["index"]: r["relevance_score"] for r in ask(app, documents=DOCUMENTS).json()["results"]}
    assert alone == [together[i] for i in range(3)]


@pytest.mark.parametrize("mode", ["dense", "sparse", "colbert", "hybrid", None])
def test_all_scores_are_between_0_and_1(app, texts, mode):
    for query in texts:
        found = ask(app, query=query, documents=texts, mode=mode).json()
        scores = [result["relevance_score"] for result in found["results"]]
        assert all(0 <= score <= 1 for score in scores)
        assert scores == sorted(scores, reverse=True)
        assert found["scored_by"] == ([mode] if mode not in ("hybrid", None) else ["dense", "sparse", "colbert"])


def test_negative_cosines_are_0_and_still_last(app, texts):
    """In texts' shape scores are as they are; the order is theirs."""
    ranks = ask(app, query=texts[0], texts=texts, mode="dense").json()
    results = ask(app, query=texts[0], documents=texts, mode="dense").json()["results"]
    assert [rank["index"] for rank in ranks] == [result["index"] for result in results]
    assert [max(0.0, min(1.0, rank["score"])) for rank in ranks] == [result["relevance_score"] for result in results]


def test_a_head_without_weight_does_not_score(app, encoder):
    answer = ask(app, documents=DOCUMENTS, weights={"dense": 0, "sparse": 3, "colbert": 1})
    assert answer.json()["scored_by"] == ["sparse", "colbert"]
    scores = encoder.compute_score([(QUERY, text) for text in DOCUMENTS], weights_for_different_modes=[0, 3, 1])
    for result in answer.json()["results"]:
        expected = scores["colbert+sparse+dense"][result["index"]]
        assert result["relevance_score"] == pytest.approx(expected, abs=1e-5)


def test_a_dense_bundle_scores_by_what_it_has(tiny_bundle, tmp_path, encoder):
    bundle = changed_bundle(tiny_bundle, tmp_path / "b", change=lambda manifest: manifest.update(heads=["dense"]))
    with served(bundle) as client:
        answer = ask(client, documents=DOCUMENTS)
        assert answer.json()["scored_by"] == ["dense"]
        assert ask(client, texts=DOCUMENTS).headers["x-m3-scored-by"] == "dense"
        scores = encoder.compute_score([(QUERY, text) for text in DOCUMENTS])["dense"]
        for result in answer.json()["results"]:
            assert result["relevance_score"] == pytest.approx(max(0, scores[result["index"]]), abs=1e-5)
        for wish in ({"mode": "hybrid"}, {"mode": "sparse"}, {"weights": {"colbert": 0.5}}):
            answer = client.post("/v1/rerank", json={"query": QUERY, "documents": DOCUMENTS, **wish})
            assert answer.status_code == 400
            assert "head; it has: dense" in answer.json()["error"]["message"]
        assert client.post("/m3/encode", json={"texts": "a"}).json()["lexical_weights"] is None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "documents", "documents: Field required"),
        ({"documents": None, "texts": None}, "documents", "documents: Field required"),
        ({"documents": ["a"], "texts": ["a"]}, "documents", "documents and texts are both given"),
        ({"documents": []}, "documents", "documents must hold at least one text"),
        ({"documents": "a"}, "documents", "documents must be a list of texts, got a string"),
        ({"documents": ["a", None]}, "documents[1]", "documents[1] must be a text, or an object with a text"),
        ({"documents": ["a", {"body": "b"}]}, "documents[1]", "got an object without one"),
        ({"documents": [{"text": 5}]}, "documents[0]", "documents[0] must be a text"),
        ({"documents": ["a"], "query": None}, "query", "query: Input should be a valid string"),
        ({"documents": ["a"], "query": ["q"]}, "query", "query: Input should be a valid string"),
        ({"documents": ["a"], "top_n": -1}, "top_n", "top_n: Input should be greater than or equal to 0"),
        ({"documents": ["a"], "top_n": True}, "top_n", "top_n: Input should be a valid integer"),
        ({"documents": ["a"], "top_n": 1, "top_k": 2}, "top_k", "top_k and top_n are the same, and differ"),
        ({"documents": ["a"], "return_documents": "yes"}, "return_documents", "Input should be a valid boolean"),
        ({"documents": ["a"], "rank_fields": ["title"]}, "rank_fields", "send each document as one text"),
        ({"documents": ["a"], "instruction": "Judge"}, "instruction", "put it into the query itself"),
        ({"documents": ["a"], "max_tokens_per_doc": 100}, "max_tokens_per_doc", "must be at least 512"),
        ({"documents": ["a"], "mode": "best"}, "mode", "Input should be 'dense', 'sparse', 'colbert' or 'hybrid'"),
    ],
)  # fmt: skip
def test_what_is_refused(app, fields, param, message):
    body = {"query": "q", **fields}
    answer = app.post("/v1/rerank", json=body)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == param
    assert app.post("/rerank", json=body).status_code == 422


def test_what_was_cut_is_reported(app):
    long = "a vector " * 600
    answer = ask(app, query=long, documents=["a", long, "b", long])
    assert answer.headers["x-m3-truncated"] == "3"
    assert answer.headers["x-m3-truncated-texts"] == "query,1,3"
    assert answer.json()["meta"]["warnings"] == ["3 texts were cut to the limit of tokens: query, documents 1, 3"]
    assert "warnings" not in ask(app, documents=DOCUMENTS).json()["meta"]
    refused = app.post("/v1/rerank", json={"query": "q", "documents": ["a", long], "truncate": False})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "documents[1]"
    assert refused.json()["error"]["message"].startswith("documents[1] has 1202 tokens, the limit is 512")
    refused = app.post("/rerank", json={"query": long, "texts": ["a"], "truncate": False})
    assert (refused.status_code, refused.json()["error"][:9]) == (413, "query has")
