"""A bundle without the pieces of some languages: every answer says which texts have such a piece."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from in_process import served
from starlette.testclient import TestClient

TEXTS = ["the model", "на что", "search", "на"]
HEADERS = {"x-m3-out-of-vocabulary": "2", "x-m3-out-of-vocabulary-texts": "1,3"}


@pytest.fixture(scope="module")
def small(small_bundle: Path) -> Iterator[TestClient]:
    with served(small_bundle) as client:
        yield client


def headers(answer) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {name: value for name, value in answer.headers.items() if name.startswith("x-m3-out-of-vocabulary")}


@pytest.mark.parametrize("path", ["/embed", "/embed_sparse", "/embed_all"])
def test_teis_routes_tell(small, app, path):
    assert headers(small.post(path, json={"inputs": TEXTS})) == HEADERS
    assert headers(small.post(path, json={"inputs": TEXTS[0]})) == headers(app.post(path, json={"inputs": TEXTS})) == {}


def test_openais_route_and_similarity_tell(small):
    assert headers(small.post("/v1/embeddings", json={"input": TEXTS, "model": "tiny-random"})) == HEADERS
    body = {"inputs": {"source_sentence": "на", "sentences": TEXTS[:2]}}
    assert headers(small.post("/similarity", json=body))["x-m3-out-of-vocabulary-texts"] == "source_sentence,1"


def test_rerank_reports_in_headers_and_warnings(small):
    answer = small.post("/v1/rerank", json={"query": "на что", "documents": TEXTS, "model": "tiny-random"})
    assert headers(answer) == {"x-m3-out-of-vocabulary": "3", "x-m3-out-of-vocabulary-texts": "query,1,3"}
    assert answer.json()["meta"]["warnings"] == ["3 texts have pieces that the bundle dropped: query, documents 1, 3"]


def test_our_own_route_reports_in_its_body(small):
    answer = small.post("/m3/encode", json={"texts": TEXTS})
    body = answer.json()
    assert (body["out_of_vocabulary"], body["out_of_vocabulary_texts"]) == (2, [1, 3])
    assert headers(answer) == HEADERS
    binary = small.post("/m3/encode", json={"texts": TEXTS, "format": "npz"})
    assert headers(binary) == HEADERS


def test_metrics_count_and_many_texts_are_told_apart(small):
    def counted() -> float:
        lines = small.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("m3_out_of_vocabulary_texts_total"))

    before = counted()
    texts = ["the model " * 400, "на " * 400] * 12  # more characters than are tokenized at once
    answer = small.post("/embed", json={"inputs": texts, "truncate": True})
    assert headers(answer)["x-m3-out-of-vocabulary"] == "12"
    assert counted() == before + 12


def test_token_ids_without_a_row_are_refused(small, app):
    ids = [token["id"] for token in app.post("/tokenize", json={"inputs": ["на"]}).json()[0]]
    answer = small.post("/v1/embeddings", json={"input": [ids], "model": "tiny-random"})
    assert answer.status_code == 400
    assert f"has the id {ids[1]} ('▁на'), a piece that this bundle of fewer pieces dropped" in answer.text
