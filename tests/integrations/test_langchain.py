"""LangChain's own stores: in memory, Qdrant, Milvus Lite."""

import asyncio
import pickle

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_milvus import Milvus
from langchain_qdrant import QdrantVectorStore, RetrievalMode
from pymilvus import Function, FunctionType
from qdrant_client import QdrantClient

from m3_runtime import BundleNotFoundError, InputError
from m3_runtime.integrations.langchain import M3Embeddings
from m3_runtime.integrations.langchain_milvus import M3SparseEmbeddings as MilvusSparse
from m3_runtime.integrations.langchain_qdrant import M3SparseEmbeddings as QdrantSparse
from m3_runtime.integrations.qdrant import Passage, QdrantIndex

QUERY = "谁用胶泥做成活字？"
ANSWER = "zh-huozi"


@pytest.fixture(scope="module")
def documents(library):
    return [Document(text, metadata={"name": name}) for name, text in library]


def test_dense_in_langchains_own_store(encoder, documents):
    store = InMemoryVectorStore(M3Embeddings(encoder))
    store.add_documents(documents)
    found = store.similarity_search_with_score(QUERY, k=3)
    assert found[0][0].metadata["name"] == ANSWER
    both = encoder.encode([QUERY, found[0][0].page_content])["dense_vecs"]
    assert found[0][1] == pytest.approx(float(both[0] @ both[1]), abs=1e-5)


def test_async_gives_the_same(encoder):
    embeddings = M3Embeddings(encoder)
    assert asyncio.run(embeddings.aembed_documents(["one", "two"])) == embeddings.embed_documents(["one", "two"])
    assert asyncio.run(embeddings.aembed_query("one")) == embeddings.embed_query("one")
    assert embeddings.embed_documents([]) == []


def test_max_length_is_kept_to(encoder):
    long, short = "one two three four five six", "one two"
    cut = M3Embeddings(encoder, max_length=4)
    np.testing.assert_allclose(cut.embed_query(long), cut.embed_query(short), atol=1e-6)
    assert np.abs(np.subtract(M3Embeddings(encoder).embed_query(long), cut.embed_query(long))).max() > 1e-3
    for sparse in (QdrantSparse(encoder, max_length=4), MilvusSparse(encoder, max_length=4)):
        assert sparse.embed_query(long) == sparse.embed_query(short) != type(sparse)(encoder).embed_query(long)


KINDS = [M3Embeddings, QdrantSparse, MilvusSparse]


@pytest.mark.parametrize("kind", KINDS)
def test_by_path_and_pickled(mini_bundle, encoder, kind):
    opening = {"variant": "onnx-fp32", "threads": 1}
    made, named = kind(str(mini_bundle), max_length=4, **opening), kind(model_name=mini_bundle, **opening)
    assert made.encoder is named.encoder is kind(mini_bundle, **opening).encoder
    long = "one two three four five six"
    expected = kind(encoder, max_length=4).embed_query(long)
    assert made.embed_query(long) == expected != named.embed_query(long)
    for given in (made, kind(encoder, max_length=4)):
        sent = pickle.loads(pickle.dumps(given))
        assert sent.embed_query(long) == expected
        assert sent.encoder is made.encoder


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_encoder_is_named(encoder, tmp_path, kind):
    for wrong in ((), (7,)):
        with pytest.raises(InputError, match="expected an open encoder or a bundle's folder"):
            kind(*wrong)
    with pytest.raises(InputError, match="one of them"):
        kind(encoder, model_name="a")
    with pytest.raises(InputError, match="the encoder is open already; threads"):
        kind(encoder, threads=2)
    with pytest.raises(BundleNotFoundError):
        kind(tmp_path / "nothing")
    with pytest.raises(TypeError, match="no_such_argument"):
        kind(tmp_path, no_such_argument=1)


def test_bad_texts_are_named(encoder):
    for embeddings in (M3Embeddings(encoder), QdrantSparse(encoder), MilvusSparse(encoder)):
        with pytest.raises(InputError, match="1"):
            embeddings.embed_documents(["good", None])


@pytest.mark.parametrize("mode", list(RetrievalMode))
def test_the_qdrant_store(encoder, documents, mode):
    client = QdrantClient(":memory:")
    QdrantIndex.create(client, "library", encoder)
    store = QdrantVectorStore(
        client,
        "library",
        embedding=M3Embeddings(encoder),
        sparse_embedding=QdrantSparse(encoder),
        retrieval_mode=mode,
        vector_name="dense",
        sparse_vector_name="sparse",
    )
    store.add_documents(documents)
    found = store.similarity_search(QUERY, k=3)
    assert found[0].metadata["name"] == ANSWER
    client.close()


def test_the_qdrant_store_reads_what_our_index_filled(encoder, library):
    client = QdrantClient(":memory:")
    QdrantIndex.create(client, "library", encoder).add(Passage(i, text) for i, (_, text) in enumerate(library))
    store = QdrantVectorStore(
        client,
        "library",
        embedding=M3Embeddings(encoder),
        sparse_embedding=QdrantSparse(encoder),
        retrieval_mode=RetrievalMode.HYBRID,
        vector_name="dense",
        sparse_vector_name="sparse",
        content_payload_key="text",
    )
    (found,) = store.similarity_search(QUERY, k=1)
    assert found.page_content == dict(library)[ANSWER]
    client.close()


def test_the_milvus_store(encoder, documents, tmp_path):
    without_words = Document("\u200b", metadata={"name": "nothing"})  # Milvus Lite takes no empty sparse vector
    store = Milvus.from_documents(
        [*documents, without_words],
        embedding=[M3Embeddings(encoder), MilvusSparse(encoder)],
        vector_field=["dense", "sparse"],
        index_params=[
            {"index_type": "FLAT", "metric_type": "IP"},
            {"index_type": "SPARSE_INVERTED_INDEX", "metric_type": "IP"},
        ],
        # the store's own default for this index asks for a drop ratio, which Milvus Lite refuses
        search_params=[{"metric_type": "IP", "params": {}}, {"metric_type": "IP", "params": {}}],
        connection_args={"uri": str(tmp_path / "library.db")},
        consistency_level="Strong",
    )
    rrf = Function("rrf", FunctionType.RERANK, input_field_names=[], params={"reranker": "rrf", "k": 60})
    found = store.similarity_search(QUERY, k=3, reranker=rrf)
    assert found[0].metadata["name"] == ANSWER
    assert store.similarity_search("\u200b", k=1, reranker=rrf)[0].metadata["name"] == "nothing"
    sparse = MilvusSparse(encoder)
    assert sparse.embed_query("").keys().isdisjoint(sparse.embed_documents([""])[0])  # they match nothing
