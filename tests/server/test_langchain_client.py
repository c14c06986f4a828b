"""LangChain's clients for text-embeddings-inference, in an environment of their own, against a real server."""

import numpy as np
import pytest

CLIENTS = ("OpenAIEmbeddings", "HuggingFaceEndpointEmbeddings")


@pytest.fixture(scope="module")
def found(server, texts, docs_code, run_foreign, tmp_path_factory) -> dict:
    code = docs_code("LangChain's client for text-embeddings-inference")
    assert [name for block in code for name in CLIENTS if f"{name}(" in block] == list(CLIENTS)
    here = [block.replace("http://localhost:8080", server.url).replace("BAAI/bge-m3", "tiny-random") for block in code]
    assert all(server.url in block for block in here)
    request = {"code": dict(zip(CLIENTS, here, strict=True)), "texts": texts}
    return run_foreign("ask_server.py", request, tmp_path_factory.mktemp("langchain"))


@pytest.mark.parametrize("client", CLIENTS)
def test_it_gets_the_dense_vectors_of_the_encoder(found, encoder, texts, client):
    expected, got = encoder.encode(texts).dense_vecs, found[client]
    np.testing.assert_allclose(got["documents"], expected, atol=1e-6)
    np.testing.assert_allclose(got["query"], expected[0], atol=1e-6)
    np.testing.assert_allclose(got["asynchronous"], [*expected, expected[0]], atol=1e-6)


def test_nothing_else_was_asked(found):
    assert found["connections"] == []
