"""Longer texts: cut where the original cuts, refused where it refuses, and whatever was cut is reported."""

import io

import numpy as np
import pytest
from in_process import served

from m3_runtime.tokenizer import OnTruncate

LONG = "a vector " * 600  # 1202 tokens, of which 512 fit
TEXTS = ["a", LONG, "b", LONG, LONG, LONG]
REPORTED = {"x-m3-truncated": "4", "x-m3-truncated-texts": "1,3-5"}


def reported(answer) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {name: value for name, value in answer.headers.items() if name.startswith("x-m3-truncated")}


@pytest.mark.parametrize("path", ["/embed", "/embed_sparse", "/embed_all", "/"])
def test_teis_routes_cut(app, path):
    assert reported(app.post(path, json={"inputs": TEXTS})) == REPORTED
    assert reported(app.post(path, json={"inputs": "a"})) == {}
    answer = app.post(path, json={"inputs": TEXTS, "truncate": False})
    assert answer.status_code == 413
    assert answer.json()["error"].startswith("inputs[1] has 1202 tokens, the limit is 512")


def test_similarity_cuts(app):
    body = {"inputs": {"source_sentence": LONG, "sentences": ["a", LONG]}}
    assert reported(app.post("/similarity", json=body))["x-m3-truncated-texts"] == "source_sentence,1"
    answer = app.post("/similarity", json={**body, "parameters": {"truncate": False}})
    assert (answer.status_code, answer.json()["error"][:19]) == (413, "source_sentence has")


@pytest.mark.parametrize(
    "wish",
    [{"truncate": True}, {"truncate": "true"}, {"truncate": "END"}, {"truncation": True},
     {"truncate_prompt_tokens": -1}, {"truncate_prompt_tokens": "512"}],
    ids=str,
)  # fmt: skip
def test_openais_route_cuts_if_asked(app, encoder, wish):
    answer = app.post("/v1/embeddings", json={"input": TEXTS, **wish})
    assert reported(answer) == REPORTED
    expected = encoder.encode(TEXTS, max_length=512).dense_vecs
    found = [item["embedding"] for item in answer.json()["data"]]
    np.testing.assert_array_equal(np.array(found, np.float32), expected)


@pytest.mark.parametrize("wish", [{}, {"truncate": False}, {"truncate": None}, {"truncate": "NONE"}], ids=str)
def test_openais_route_refuses_otherwise(app, wish):
    answer = app.post("/v1/embeddings", json={"input": TEXTS, **wish})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert answer.json()["error"]["param"] == "input[1]"


def test_so_many_tokens(app, encoder):
    answer = app.post("/v1/embeddings", json={"input": ["a", "a vector is a model"], "truncate_prompt_tokens": 4})
    assert reported(answer) == {"x-m3-truncated": "1", "x-m3-truncated-texts": "1"}
    assert answer.json()["usage"]["total_tokens"] == 3 + 4
    expected = encoder.encode("a vector is a model", max_length=4).dense_vecs
    np.testing.assert_array_equal(np.array(answer.json()["data"][1]["embedding"], np.float32), expected)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens must be at least 3, got 0"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens must be at least 3, got -2"),
        ({"truncate_prompt_tokens": 513}, "truncate_prompt_tokens is 513, but the model takes at most 512 tokens"),
        ({"truncate_prompt_tokens": 9, "truncate": False}, "truncate is false, but truncate_prompt_tokens asks"),
        ({"truncate": "START"}, "truncate: Input should be a valid boolean"),
        ({"truncate": 1}, "truncate: Input should be a valid boolean"),
        ({"truncate": True, "truncation": False}, "truncation and truncate are the same, and differ"),
    ],
)
def test_wishes_that_cannot_be_granted(app, wish, message):
    answer = app.post("/v1/embeddings", json={"input": "a", **wish})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_our_own_route_reports_in_the_body_too(app):
    assert app.post("/m3/encode", json={"texts": TEXTS}).status_code == 413
    answer = app.post("/m3/encode", json={"texts": TEXTS, "truncate": True, "heads": ["dense"]})
    assert reported(answer) == REPORTED
    assert (answer.json()["truncated"], answer.json()["truncated_texts"]) == (4, [1, 3, 4, 5])
    binary = app.post("/m3/encode", json={"texts": TEXTS, "truncate": True, "heads": ["dense"], "format": "npz"})
    assert reported(binary) == REPORTED
    assert np.load(io.BytesIO(binary.content))["dense_vecs"].shape == (6, 64)
    both = app.post("/m3/encode", json={"texts": "a", "max_length": 8, "truncate_prompt_tokens": 9})
    assert "max_length and truncate_prompt_tokens differ" in both.json()["error"]


def test_a_server_may_always_cut(tiny_bundle):
    with served(tiny_bundle, on_truncate=OnTruncate.TRUNCATE) as client:
        for path, field in ("/v1/embeddings", "input"), ("/embed", "inputs"), ("/m3/encode", "texts"):
            assert reported(client.post(path, json={field: TEXTS})) == REPORTED
            assert client.post(path, json={field: TEXTS, "truncate": False}).status_code in (400, 413)


def test_token_ids_are_cut_and_reported_as_texts_are(app, encoder):
    ids = encoder.tokenizer.encode_batch([LONG], 9999).ids[0].tolist()
    answer = app.post("/embed", json={"inputs": ["a", ids, LONG]})
    assert reported(answer)["x-m3-truncated-texts"] == "1-2"
    np.testing.assert_array_equal(answer.json()[1], answer.json()[2])


def test_a_header_stays_short(app):
    texts = [LONG if i % 2 else "a" for i in range(1000)]
    answer = app.post("/v1/embeddings", json={"input": texts, "truncate_prompt_tokens": 3})
    found = reported(answer)
    assert found["x-m3-truncated"] == "500"
    assert found["x-m3-truncated-texts"].endswith(",...")
    assert len(found["x-m3-truncated-texts"]) < 1000
