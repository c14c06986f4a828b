"""Nothing is taken for something else: token ids, prompts, fields of other APIs. No field that matters is ignored."""

from functools import partial

import numpy as np
import pytest
from in_process import changed_bundle, served

OPENAIS_IDS = [[9906, 1917], [15339], [0, 300], [300, 2], [2, 0], []]  # the first two are of cl100k
PROMPTS = {
    "prompts": {"query": "what is ", "passage": "", "instruct": "search the text: "},
    "default_prompt_name": None,
}


def vectors(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    found = answer.json()
    rows = [item["embedding"] for item in found["data"]] if isinstance(found, dict) else found
    return np.array(rows, np.float32)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings", "/embed", "/", "/invocations"])
@pytest.mark.parametrize("ids", OPENAIS_IDS, ids=str)
def test_ids_of_another_tokenizer_make_no_vectors(app, path, ids):
    is_openai = path.endswith("embeddings")
    field = "input" if is_openai else "inputs"
    for value in ([ids] if ids else []), [ids], ["a text", ids]:
        if not value:
            continue
        answer = app.post(path, json={field: value})
        assert answer.status_code == (400 if is_openai else 422), answer.text
        message = answer.json()["error"]["message"] if is_openai else answer.json()["error"]
        assert message.startswith(f"{field}[{len(value) - 1}]")
        assert "check_embedding_ctx_length=False" in message


@pytest.mark.parametrize(
    ("path", "field"), [("/embed_sparse", "inputs"), ("/embed_all", "inputs"), ("/m3/encode", "texts")]
)
def test_nor_weights_or_rows(app, path, field):
    answer = app.post(path, json={field: [300, 301]})
    assert answer.status_code == 422
    assert f"{field}[0] holds integers that do not begin with 0 (<s>) and end with 2 (</s>)" in answer.json()["error"]


@pytest.mark.parametrize(
    "ids", [[True, False], [[0, True, 2]], [[0, 5.0, 2]], [["0", 2]], [[None]], [{"a": 1}]], ids=str
)
def test_what_is_no_integer_is_no_id(app, ids):
    answer = app.post("/v1/embeddings", json={"input": ids})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("input[0]")


def test_whole_ids_are_taken(app, encoder):
    texts = ["What is BGE M3?", "", "what is a vector"]
    ids = [row.tolist() for row in encoder.tokenizer.encode_batch(texts, 512).ids]
    np.testing.assert_array_equal(vectors(app.post("/embed", json={"inputs": ids})), encoder.encode(texts).dense_vecs)
    np.testing.assert_array_equal(
        vectors(app.post("/v1/embeddings", json={"input": ids[0]})), encoder.encode(texts[:1]).dense_vecs
    )


def test_a_server_may_take_all_ids(tiny_bundle, encoder):
    text = "What is BGE M3?"
    whole = encoder.tokenizer.encode_batch([text], 512).ids[0].tolist()
    with served(tiny_bundle, takes_token_ids=True) as client:
        for ids in (whole, whole[1:-1], whole[1:], whole[:-1]):
            found = vectors(client.post("/v1/embeddings", json={"input": ids}))
            np.testing.assert_array_equal(found, encoder.encode([text]).dense_vecs)
        answer = client.post("/v1/embeddings", json={"input": [[5], [9906]]})
        assert answer.json()["error"]["param"] == "input[1][0]"


@pytest.fixture(scope="module")
def prompted(tiny_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts") / "bundle"
    with served(changed_bundle(tiny_bundle, folder, {"config_sentence_transformers.json": PROMPTS})) as client:
        yield client


def test_prompts_are_applied(prompted, encoder):
    text, expected = "a vector", encoder.encode(["what is a vector"], return_sparse=True, return_colbert_vecs=True)
    wish, same = {"prompt_name": "query"}, partial(np.testing.assert_allclose, atol=1e-6)
    for path in ("/embed", "/"):
        same(vectors(prompted.post(path, json={"inputs": text, **wish})), expected.dense_vecs)
    for more in (wish, {"input_type": "query"}, {"task": "query"}):
        found = vectors(prompted.post("/v1/embeddings", json={"input": text, **more}))
        same(found, expected.dense_vecs)
    own = prompted.post("/m3/encode", json={"texts": [text], **wish}).json()
    same(np.array(own["dense_vecs"], np.float32), expected.dense_vecs)
    assert own["token_counts"] == expected.token_counts.tolist()
    sparse = prompted.post("/embed_sparse", json={"inputs": text, **wish}).json()[0]
    assert {str(item["index"]) for item in sparse} == expected["lexical_weights"][0].keys()
    rows = prompted.post("/embed_all", json={"inputs": text, **wish}).json()[0]
    assert len(rows) == expected.token_counts[0] - 1
    tokens = prompted.post("/tokenize", json={"inputs": text, **wish}).json()[0]
    assert [token["text"] for token in tokens[1:3]] == ["what", "is"]
    body = {
        "inputs": {"source_sentence": text, "sentences": ["what is a vector"]},
        "parameters": {"prompt_name": "passage"},
    }
    plain = {"inputs": body["inputs"]}
    assert prompted.post("/similarity", json=body).json() == prompted.post("/similarity", json=plain).json()
    body["parameters"] = wish
    assert prompted.post("/similarity", json=body).json() != prompted.post("/similarity", json=plain).json()
    assert prompted.get("/info").json()["prompts"] == ["query", "passage", "instruct"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": "a"}),
        ("/embed_sparse", {"inputs": "a"}),
        ("/embed_all", {"inputs": "a"}),
        ("/tokenize", {"inputs": "a"}),
        ("/m3/encode", {"texts": "a"}),
        ("/v1/embeddings", {"input": "a"}),
    ],
)
def test_unknown_prompts_are_refused(prompted, app, path, body):
    for client, known in (prompted, "query, passage, instruct"), (app, "none"):
        answer = client.post(path, json={**body, "prompt_name": "no such"})
        assert answer.status_code == (400 if path.startswith("/v1") else 422)
        assert f"there is no prompt 'no such' in this bundle; it has: {known}" in answer.text


def test_prompts_that_cannot_be_applied(prompted):
    answer = prompted.post("/embed", json={"inputs": [[0, 5, 2]], "prompt_name": "query"})
    assert answer.status_code == 422
    assert "no prompt can be put before token ids" in answer.json()["error"]
    answer = prompted.post("/rerank", json={"query": "a", "texts": ["b"], "prompt_name": "query"})
    assert answer.status_code == 422
    assert "prompt_name must be left out" in answer.json()["error"]
    answer = prompted.post("/v1/embeddings", json={"input": "a", "prompt_name": "query", "input_type": "passage"})
    assert answer.status_code == 400
    answer = prompted.post("/v1/embeddings", json={"input": "a", "input_type": "clustering"})
    assert "input_type: there is no prompt 'clustering'" in answer.json()["error"]["message"]


def test_kinds_of_texts_change_nothing_where_there_are_no_prompts(app):
    plain = vectors(app.post("/v1/embeddings", json={"input": "a"}))
    for more in ({"input_type": "query"}, {"task": "retrieval.passage"}, {"input_type": None, "task": None}):
        np.testing.assert_array_equal(vectors(app.post("/v1/embeddings", json={"input": "a", **more})), plain)


@pytest.mark.parametrize(
    ("field", "harmless", "other"),
    [
        ("normalize", True, False),
        ("add_special_tokens", True, False),
        ("late_chunking", False, True),
        ("embedding_types", ["float"], ["int8"]),
        ("embedding_type", "float", "binary"),
        ("output_dtype", "float", "ubinary"),
        ("encoding_format", "float", "ubinary"),
        ("modality", "text", "image"),
        ("instruction", "", "Find what answers"),
        ("return_sparse", "false", True),
        ("truncation_direction", "Right", "Left"),
        ("output_dimension", 64, 1024),
    ],
)
def test_fields_of_other_apis_are_obeyed_or_refused(app, field, harmless, other):
    for path, texts in (("/v1/embeddings", "input"), ("/embed", "inputs")):
        assert app.post(path, json={texts: "a", field: harmless}).status_code == 200
        assert app.post(path, json={texts: "a", field: None}).status_code == 200
        answer = app.post(path, json={texts: "a", field: other})
        assert answer.status_code in (400, 422), field
        assert field in answer.text or "dimensions" in answer.text


def test_other_unknown_fields_are_ignored(app):
    extra = {f"field_{n}": n for n in range(40)} | {"user": 5, "metadata": {"a": [1]}, "priority": 3}
    plain = vectors(app.post("/v1/embeddings", json={"input": "a"}))
    np.testing.assert_array_equal(vectors(app.post("/v1/embeddings", json={"input": "a", **extra})), plain)


def test_vectors_of_a_model_that_does_not_normalize(tiny_bundle, tmp_path):
    """The graph is the same, so that only what the server makes of it is seen."""
    bundle = changed_bundle(tiny_bundle, tmp_path / "b", change=lambda manifest: manifest.update(normalize=False))
    with served(bundle) as client:
        for normalize in (None, True, False):
            found = vectors(client.post("/embed", json={"inputs": "a", "normalize": normalize}))
            np.testing.assert_allclose(np.linalg.norm(found), 1, atol=1e-5)
