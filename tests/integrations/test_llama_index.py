"""LlamaIndex' own index and its Qdrant store."""

import asyncio
import pickle

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.schema import Document, TextNode
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient

from m3_runtime import InputError, SpaceMismatchError
from m3_runtime.integrations.llama_index import M3Embedding, M3SparseEncoder

QUERY = "谁用胶泥做成活字？"
ANSWER = "zh-huozi"
OPENED = {"variant": "onnx-fp32", "threads": 1}


@pytest.fixture
def nodes(library):
    return [TextNode(text=text, id_=f"00000000-0000-0000-0000-{i:012}") for i, (_, text) in enumerate(library)]


def test_dense_in_llama_indexs_own_store(encoder, nodes, library):
    index = VectorStoreIndex(nodes, embed_model=M3Embedding(encoder))
    found = index.as_retriever(similarity_top_k=3).retrieve(QUERY)
    assert found[0].text == dict(library)[ANSWER]
    both = encoder.encode([QUERY, found[0].text])["dense_vecs"]
    assert found[0].score == pytest.approx(float(both[0] @ both[1]), abs=1e-5)


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect")  # the store makes them, in memory too
@pytest.mark.parametrize("mode", [VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.HYBRID])
def test_sparse_and_hybrid_in_the_qdrant_store(encoder, nodes, library, mode):
    client = QdrantClient(":memory:")
    sparse = M3SparseEncoder(encoder)
    store = QdrantVectorStore(
        "library", client=client, enable_hybrid=True, sparse_doc_fn=sparse, sparse_query_fn=sparse
    )
    index = VectorStoreIndex(
        nodes, storage_context=StorageContext.from_defaults(vector_store=store), embed_model=M3Embedding(encoder)
    )
    retriever = index.as_retriever(similarity_top_k=3, sparse_top_k=3, vector_store_query_mode=mode)
    found = retriever.retrieve(QUERY)
    assert found[0].text == dict(library)[ANSWER]
    if mode is VectorStoreQueryMode.SPARSE:
        query, passage = encoder.encode([QUERY, found[0].text], return_sparse=True)["lexical_weights"]
        assert found[0].score == pytest.approx(encoder.compute_lexical_matching_score(query, passage), rel=1e-4)
    client.close()


def test_every_way_to_ask_gives_the_same(encoder):
    embedding = M3Embedding(encoder, embed_batch_size=2)
    texts = ["one", "two words", "three more words"]
    batch = embedding.get_text_embedding_batch(texts)
    np.testing.assert_allclose(batch, encoder.encode(texts)["dense_vecs"], atol=1e-6)
    np.testing.assert_allclose(embedding.get_text_embedding("one"), batch[0], atol=1e-6)
    np.testing.assert_allclose(embedding.get_query_embedding("one"), batch[0], atol=1e-6)
    np.testing.assert_allclose(asyncio.run(embedding.aget_text_embedding_batch(texts)), batch, atol=1e-6)
    np.testing.assert_allclose(asyncio.run(embedding.aget_query_embedding("one")), batch[0], atol=1e-6)
    assert embedding.model_name == "mini-m3"


def test_by_path_and_pickled(mini_bundle, encoder):
    made = M3Embedding(str(mini_bundle), **OPENED, max_length=4)
    named = M3Embedding(model_name=str(mini_bundle), **OPENED)
    long = "one two three four five six"
    expected = encoder.encode(long, max_length=4).dense_vecs.tolist()
    assert made.get_text_embedding(long) == expected != named.get_text_embedding(long)
    for other in (pickle.loads(pickle.dumps(made)), M3Embedding.from_dict(made.to_dict()), made.model_copy()):
        assert other.get_text_embedding(long) == expected
        assert other.to_dict() == made.to_dict()
    sparse = M3SparseEncoder(mini_bundle, **OPENED)
    assert pickle.loads(pickle.dumps(sparse))(["one"]) == sparse(["one"]) == M3SparseEncoder(encoder)(["one"])


def test_a_cache_never_gives_vectors_of_another_length_or_variant(mini_bundle, tiny_bundle):
    """LlamaIndex looks vectors up by what `to_dict` says."""
    node = [TextNode(text="one two three four five six")]
    made = [M3Embedding(mini_bundle, **OPENED, max_length=length) for length in (None, 4)]
    made += [M3Embedding(mini_bundle, variant="onnx-int8", threads=1), M3Embedding(tiny_bundle, **OPENED)]
    assert len({get_transformation_hash(node, embedding) for embedding in made}) == len(made)


def test_a_folder_that_holds_another_model_by_now_is_an_error(mini_bundle, tiny_bundle, tmp_path):
    folder = tmp_path / "bundle"
    folder.symlink_to(mini_bundle)
    made = M3Embedding(folder, **OPENED)
    sent, written = pickle.dumps(made), made.to_dict()
    folder.unlink()
    folder.symlink_to(tiny_bundle)
    with pytest.raises(SpaceMismatchError):
        pickle.loads(sent)
    with pytest.raises(SpaceMismatchError):
        M3Embedding.from_dict(written)


def test_a_pipeline_of_two_processes(mini_bundle, encoder, library):
    embedding = M3Embedding(mini_bundle, **OPENED)
    documents = [Document(text=text, id_=name) for name, text in library[:4]]
    pipeline = IngestionPipeline(transformations=[embedding], disable_cache=True)
    found = {node.node_id: node.embedding for node in pipeline.run(documents=documents, num_workers=2)}
    expected = encoder.encode([text for _, text in library[:4]]).dense_vecs
    np.testing.assert_allclose([found[name] for name, _ in library[:4]], expected, atol=1e-6)


def test_max_length_and_bad_texts(encoder):
    long, short = "one two three four five six", "one two"
    cut = M3Embedding(encoder, max_length=4)
    np.testing.assert_allclose(cut.get_text_embedding(long), cut.get_text_embedding(short), atol=1e-6)
    assert M3SparseEncoder(encoder, max_length=4)([long]) == M3SparseEncoder(encoder)([short])
    assert M3SparseEncoder(encoder)([""]) == ([[]], [[]])
    with pytest.raises(InputError, match="1"):
        M3SparseEncoder(encoder)(["good", None])
