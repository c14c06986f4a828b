"""A reranker's bundle in LangChain, LlamaIndex, Haystack and in pymilvus' place."""

import asyncio
import pickle

import pytest
from haystack import Document as HaystackDocument
from haystack import Pipeline
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from m3_runtime import InputError, M3Reranker
from m3_runtime.integrations.haystack import M3Ranker
from m3_runtime.integrations.lancedb import LanceIndex
from m3_runtime.integrations.langchain import M3DocumentCompressor
from m3_runtime.integrations.llama_index import M3NodePostprocessor
from m3_runtime.integrations.milvus import BGEM3EmbeddingFunction, BGERerankFunction, MilvusIndex
from m3_runtime.integrations.pgvector import PgvectorIndex
from m3_runtime.integrations.qdrant import QdrantIndex
from m3_runtime.integrations.search_engines import ElasticsearchDocuments, OpenSearchDocuments

OPENED = {"variant": "onnx-fp32", "threads": 1}
QUERY = "Who first climbed the second highest mountain on Earth?"


@pytest.fixture(scope="module")
def reranker(reranker_bundle):
    with M3Reranker.open(reranker_bundle, **OPENED) as opened:
        yield opened


@pytest.fixture(scope="module")
def texts(library):
    return [text for _, text in library]


@pytest.fixture(scope="module")
def best(reranker, texts):
    """Indexes and scores, the best first."""
    scores = reranker.compute_score([(QUERY, text) for text in texts], normalize=True)
    return sorted(enumerate(scores), key=lambda one: -one[1])


def test_langchain(reranker_bundle, reranker, texts, best):
    documents = [Document(text, metadata={"index": i}) for i, text in enumerate(texts)]
    compressor = M3DocumentCompressor(reranker, top_n=4)
    found = compressor.compress_documents(documents, QUERY)
    assert [(one.metadata["index"], one.metadata["relevance_score"]) for one in found] == best[:4]
    assert "relevance_score" not in documents[0].metadata
    assert list(asyncio.run(compressor.acompress_documents(documents, QUERY))) == list(found)
    by_path = pickle.loads(pickle.dumps(M3DocumentCompressor(model_name=reranker_bundle, top_n=None, **OPENED)))
    assert len(by_path.compress_documents(documents, QUERY)) == len(documents)
    assert list(compressor.compress_documents([], QUERY)) == []


def test_llama_index(reranker_bundle, reranker, texts, best):
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(i)), score=0.1) for i, text in enumerate(texts)]
    made = M3NodePostprocessor(reranker, top_n=4)
    found = made.postprocess_nodes(nodes, query_str=QUERY)
    assert [(int(one.node.node_id), one.score) for one in found] == best[:4]
    assert nodes[0].score == 0.1
    again = M3NodePostprocessor.from_dict(M3NodePostprocessor(model=reranker_bundle, top_n=4, **OPENED).to_dict())
    sent = pickle.loads(pickle.dumps(again))
    for other in (again, sent):
        assert [one.score for one in other.postprocess_nodes(nodes, query_str=QUERY)] == [
            score for _, score in best[:4]
        ]
    assert len(asyncio.run(made.apostprocess_nodes(nodes, query_str=QUERY))) == 4
    with pytest.raises(InputError, match="needs the query"):
        made.postprocess_nodes(nodes)


def test_haystack(reranker_bundle, texts, best):
    documents = [HaystackDocument(content=text, meta={"index": i}) for i, text in enumerate(texts)]
    pipeline = Pipeline()
    pipeline.add_component("ranker", M3Ranker.from_dict(M3Ranker(reranker_bundle, top_k=4, **OPENED).to_dict()))
    found = pipeline.run({"ranker": {"query": QUERY, "documents": documents}})["ranker"]["documents"]
    assert [(one.meta["index"], one.score) for one in found] == best[:4]
    assert documents[0].score is None
    ranker = M3Ranker(reranker_bundle, score_threshold=best[2][1], **OPENED)
    assert len(ranker.run(QUERY, documents)["documents"]) == 3
    assert asyncio.run(ranker.run_async(QUERY, documents, 1)) == ranker.run(QUERY, documents, top_k=1)
    titled = M3Ranker(reranker_bundle, meta_fields_to_embed=["index"], **OPENED)
    assert titled.run(QUERY, documents)["documents"][0].score != found[0].score


def test_milvus(reranker_bundle, texts, best):
    function = BGERerankFunction(reranker_bundle, **OPENED)
    found = function(QUERY, texts, top_k=4)
    assert [(one.index, one.score) for one in found] == best[:4]
    assert found[0].to_dict() == {"text": texts[best[0][0]], "score": best[0][1], "index": best[0][0]}
    assert len(function(QUERY, texts, top_k=0)) == len(texts)
    assert len(function(QUERY, texts)) == 5


def test_stores_refuse_a_reranker_before_they_ask_the_database(reranker, reranker_bundle):
    for store in (QdrantIndex, MilvusIndex, LanceIndex, PgvectorIndex):
        with pytest.raises(InputError, match="is a reranker's bundle"):
            store.create(None, "library", reranker)
    for documents in (ElasticsearchDocuments, OpenSearchDocuments):
        with pytest.raises(InputError, match="is a reranker's bundle"):
            documents(reranker)
        with pytest.raises(InputError, match="expected an open M3Encoder, got str"):
            documents(str(reranker_bundle))
    with pytest.raises(InputError, match="expected a bundle's folder, got M3Reranker"):
        BGEM3EmbeddingFunction(reranker)


def test_one_reranker_is_shared_and_bad_input_is_named(reranker_bundle, tiny_bundle, texts):
    first, second = M3Ranker(reranker_bundle, **OPENED), M3Ranker(reranker_bundle, top_k=3, **OPENED)
    assert first.reranker is second.reranker
    for wrong in ({}, {"reranker": reranker_bundle, "model_name": reranker_bundle}):
        with pytest.raises(InputError, match="an open reranker or a bundle's folder, one of them"):
            M3DocumentCompressor(**wrong)
    for kind in (M3Ranker, M3DocumentCompressor, M3NodePostprocessor, BGERerankFunction):
        with pytest.raises(InputError, match="encoder's bundle"):
            kind(tiny_bundle)
    with pytest.raises(InputError, match="top_n must be at least 1"):
        M3DocumentCompressor(reranker_bundle, top_n=0, **OPENED)
    with pytest.raises(InputError, match="the passage of pair 1 is empty"):
        M3DocumentCompressor(reranker_bundle, **OPENED).compress_documents([Document("a"), Document("")], QUERY)
    with pytest.raises(InputError, match=r"documents\[0\] must be a Document"):
        first.run(QUERY, texts)
