"""Other people's clients that do not fit into our environment, in one of their own, against a real server."""

import numpy as np
import pytest

LANGCHAIN = ("OpenAIEmbeddings", "HuggingFaceEndpointEmbeddings")
QUERY = "vector"
DOCUMENTS = ["what is a vector", "the model is a text", "search the sparse token"]


@pytest.fixture(scope="module")
def found(server, texts, docs_code, run_foreign, tmp_path_factory) -> dict:
    """Everything, from one process: these packages take long to import."""
    code = docs_code("LangChain's client for text-embeddings-inference")
    assert [name for block in code for name in LANGCHAIN if f"{name}(" in block] == list(LANGCHAIN)
    here = [block.replace("http://localhost:8080", server.url).replace("BAAI/bge-m3", "tiny-random") for block in code]
    assert all(server.url in block for block in here)
    request = {
        "url": server.url,
        "model": "tiny-random",
        "texts": texts,
        "query": QUERY,
        "documents": DOCUMENTS,
        "code": dict(zip(LANGCHAIN, here, strict=True)),
    }
    return run_foreign("ask_server.py", request, tmp_path_factory.mktemp("clients"))


@pytest.mark.parametrize("client", LANGCHAIN)
def test_langchains_clients_get_the_dense_vectors_of_the_encoder(found, encoder, texts, client):
    expected, got = encoder.encode(texts).dense_vecs, found["langchain"][client]
    np.testing.assert_allclose(got["documents"], expected, atol=1e-6)
    np.testing.assert_allclose(got["query"], expected[0], atol=1e-6)
    np.testing.assert_allclose(got["asynchronous"], [*expected, expected[0]], atol=1e-6)


def test_langchains_default_is_refused_with_the_switch_to_set(found):
    """Its default sends OpenAI's token ids, which are other words here."""
    status, message = found["refusals"]["langchain by default"]
    assert status == 400
    assert "check_embedding_ctx_length=False" in message


def test_llama_index_gets_the_dense_vectors_of_the_encoder(found, encoder, texts):
    np.testing.assert_allclose(found["vectors"]["llama-index"], encoder.encode(texts).dense_vecs, atol=1e-6)


@pytest.mark.parametrize("provider", ["openai", "openai, bare", "hosted_vllm"])
def test_litellm_gets_the_dense_vectors_of_the_encoder(found, encoder, texts, provider):
    np.testing.assert_allclose(found["vectors"][f"litellm {provider}"], encoder.encode(texts).dense_vecs, atol=1e-6)


@pytest.fixture(scope="module")
def best(server) -> list[tuple[int, float]]:
    """The two best documents as the server itself ranks them."""
    answer = server.post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS, "top_n": 2}).json()
    return [(result["index"], result["relevance_score"]) for result in answer["results"]]


def check_ranks(ranks, best) -> None:
    assert [(index, text) for index, _, text in ranks] == [(index, DOCUMENTS[index]) for index, _ in best]
    assert [score for _, score, _ in ranks] == pytest.approx([score for _, score in best], abs=1e-6)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_coheres_client_gets_our_ranks(found, best, version):
    check_ranks(found["ranks"][f"cohere {version}"], best)


@pytest.mark.parametrize("provider", ["hosted_vllm", "cohere", "jina_ai", "huggingface"])
def test_litellms_rerankers_get_our_ranks(found, best, provider):
    check_ranks(found["ranks"][f"litellm {provider}"], best)


@pytest.mark.parametrize(
    ("client", "status", "words"),
    [
        ("llama-index", 404, "there is no model 'gpt' here; this server has: tiny-random"),
        ("litellm", 404, "there is no model 'gpt' here; this server has: tiny-random"),
        ("cohere", 400, "documents must hold at least one text, got an empty list"),
    ],
)
def test_their_users_read_our_refusals(found, client, status, words):
    got = found["refusals"][client]
    assert got[0] == status
    assert words in got[1]


def test_nothing_else_was_asked(found):
    """But what litellm does of itself: its provider for Hugging Face looks there for the model's configuration."""
    assert set(found["connections"]) <= {"huggingface.co"}
