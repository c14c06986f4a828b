"""The clients that people use, against a real server: what they get is what the encoder gives."""

import numpy as np
import openai
import pytest
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from huggingface_hub import InferenceClient


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(client) -> str:
    (only,) = client.models.list().data
    assert client.models.retrieve(only.id).id == only.id
    return only.id


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_openais_client_gets_the_very_bits_of_the_encoder(client, model, encoder, texts, encoding):
    """None: the client then asks for base64 by itself, and decodes it."""
    more = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model=model, input=texts, **more)
    found = [item.embedding for item in sorted(answer.data, key=lambda item: item.index)]
    if encoding == "base64":
        import base64

        found = [np.frombuffer(base64.b64decode(text), "<f4") for text in found]
    expected = encoder.encode(texts)
    np.testing.assert_array_equal(np.array(found, np.float32), expected.dense_vecs)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == expected.token_counts.sum()


def test_one_text_and_its_token_ids(client, model, encoder):
    text = "What is BGE M3?"
    whole = encoder.tokenizer.encode_batch([text], 512).ids[0].tolist()
    inputs = [text, [text], whole, [whole], [whole, text]]
    answers = [client.embeddings.create(model=model, input=value, encoding_format="float") for value in inputs]
    expected = encoder.encode(text).dense_vecs
    assert [len(answer.data) for answer in answers] == [1, 1, 1, 1, 2]
    for answer in answers:
        for item in answer.data:
            np.testing.assert_allclose(np.array(item.embedding, np.float32), expected, atol=1e-6)


def test_openais_client_understands_our_refusals(client, model, encoder):
    size = encoder.bundle.manifest.geometry.hidden_size
    assert len(client.embeddings.create(model=model, input="a", dimensions=size).data) == 1
    with pytest.raises(openai.BadRequestError, match=f"dimensions must be {size} or left out, got 4") as refused:
        client.embeddings.create(model=model, input="a", dimensions=4)
    assert (refused.value.param, refused.value.type) == ("dimensions", "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="there is no model 'text-embedding-3-small' here; this server has"):
        client.embeddings.create(model="text-embedding-3-small", input="a")
    with pytest.raises(openai.BadRequestError, match=r"input\[1\] must be a text or a list of token ids"):
        client.embeddings.create(model=model, input=["a", None])  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client.embeddings.create(model=model, input=[[9906, 1917]])
    with pytest.raises(openai.BadRequestError, match=r"input\[2\] has \d+ tokens, the limit is \d+; split") as refused:
        client.embeddings.create(model=model, input=["a", "b", "wort " * 20000])
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input[2]")


def test_openais_client_may_ask_for_a_cut(client, model):
    asked = client.embeddings.with_raw_response.create(
        model=model, input=["a", "wort " * 20000], extra_body={"truncate_prompt_tokens": -1}
    )
    assert asked.headers["x-m3-truncated-texts"] == "1"
    assert len(asked.parse().data) == 2


def test_hugging_faces_client_gets_the_dense_vectors(server, encoder, texts):
    """It posts to the bare address, and LangChain's client for text-embeddings-inference hands it lists of texts."""
    client = InferenceClient(model=server.url)
    expected = encoder.encode(texts).dense_vecs
    np.testing.assert_allclose(client.feature_extraction(texts), expected, atol=1e-6)
    one = client.feature_extraction(texts[0], truncate=True, normalize=True)
    np.testing.assert_allclose(np.squeeze(one), expected[0], atol=1e-6)


def test_haystacks_embedders_get_the_dense_vectors(server, model, encoder, texts):
    """Those for OpenAI, by the address alone."""
    wishes = {"model": model, "api_base_url": f"{server.url}/v1", "api_key": Secret.from_token("none")}
    expected = encoder.encode(texts).dense_vecs
    documents = [Document(content=text) for text in texts]
    embedded = OpenAIDocumentEmbedder(**wishes, progress_bar=False, raise_on_failure=True).run(documents)
    np.testing.assert_allclose([each.embedding for each in embedded["documents"]], expected, atol=1e-6)
    query = OpenAITextEmbedder(**wishes).run(texts[0])
    np.testing.assert_allclose(query["embedding"], expected[0], atol=1e-6)
