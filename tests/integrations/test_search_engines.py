"""Mappings, documents and queries, against the types of both engines' clients; no server is there."""

import json
from inspect import signature

import numpy as np
import pytest
from elasticsearch import Elasticsearch
from elasticsearch import dsl as elastic
from elasticsearch.helpers import expand_action as elastic_action
from elasticsearch.serializer import JsonSerializer
from opensearch.protobufs.schemas.common_pb2 import HybridQuery, KnnQuery
from opensearchpy import OpenSearch
from opensearchpy.helpers import expand_action as open_action
from opensearchpy.helpers.field import construct_field

from m3_runtime import InputError, PartlyAddedError, SpaceMismatchError, VariantDriftWarning
from m3_runtime.integrations.search_engines import ElasticsearchDocuments, Hit, OpenSearchDocuments, Passage


@pytest.fixture(scope="module", params=[ElasticsearchDocuments, OpenSearchDocuments])
def documents(request, encoder):
    return request.param(encoder)


@pytest.fixture(scope="module")
def for_elastic(encoder):
    return ElasticsearchDocuments(encoder)


@pytest.fixture(scope="module")
def for_open(encoder):
    return OpenSearchDocuments(encoder)


def test_elasticsearchs_client_knows_the_mappings(for_elastic, encoder):
    body = for_elastic.index_body()
    assert set(body) <= set(signature(Elasticsearch("http://localhost:1").indices.create).parameters)
    types = {}
    for name, field in body["mappings"]["properties"].items():
        made = elastic.field.construct_field(field)
        assert made.to_dict() == field
        types[name] = type(made)
    assert types["dense"] is elastic.DenseVector
    assert types["sparse"] is elastic.SparseVector
    assert body["mappings"]["properties"]["dense"]["dims"] == encoder.bundle.manifest.geometry.hidden_size <= 4096


def test_opensearchs_client_knows_the_mappings(for_open, encoder):
    body = for_open.index_body()
    assert body["settings"] == {"index": {"knn": True}}
    for field in body["mappings"]["properties"].values():
        made = construct_field(field).to_dict()
        made.pop("multi", None)
        assert made == field
    assert body["mappings"]["properties"]["sparse"] == {"type": "rank_features"}
    assert body["mappings"]["properties"]["dense"]["dimension"] == encoder.bundle.manifest.geometry.hidden_size


def test_both_clients_write_the_actions(documents, encoder, library):
    passages = [Passage(7, ""), *(Passage(name, text, {"lang": name[:2]}) for name, text in library)]
    ours = encoder.encode([p.text for p in passages], return_sparse=True)
    for row, (passage, action) in enumerate(zip(passages, documents.actions("library", passages), strict=True)):
        head, source = elastic_action(action)
        assert (head, source) == open_action(action)
        assert head == {"index": {"_index": "library", "_id": str(passage.id)}}
        read = json.loads(JsonSerializer().dumps(source))
        assert (read["text"], read["payload"]) == (passage.text, passage.payload)
        np.testing.assert_array_equal(np.float32(read["dense"]), ours.dense_vecs[row])
        assert read.get("sparse", {}) == ours.lexical_weights[row]
        assert all(name.isdigit() and weight > 0 for name, weight in read.get("sparse", {}).items())
        assert set(read) <= set(documents.index_body()["mappings"]["properties"])


def test_elasticsearchs_client_knows_the_queries(for_elastic, encoder, question):
    known = set(signature(Elasticsearch("http://localhost:1").search).parameters)
    assert "body" in known
    dense, sparse, hybrid = (for_elastic.query_body(question, limit=5, mode=m) for m in ("dense", "sparse", "hybrid"))
    for body in (dense, sparse, hybrid):
        assert {key.removeprefix("_") for key in body} <= known
        assert body["size"] == 5
    query = elastic.Q(sparse["query"])
    assert isinstance(query, elastic.query.SparseVector)
    assert query.query_vector.to_dict() == encoder.encode(question, return_sparse=True).lexical_weights
    assert query.prune is False
    knn = elastic.query.Knn(**dense["knn"])
    assert (knn.field, knn.k, knn.num_candidates) == ("dense", 100, 100)
    first, second = hybrid["retriever"]["rrf"]["retrievers"]
    assert (first, second) == ({"knn": dense["knn"]}, {"standard": {"query": sparse["query"]}})
    assert hybrid["retriever"]["rrf"]["rank_window_size"] == 100


def test_opensearchs_client_sends_the_queries(for_open, encoder, question):
    weights = encoder.encode(question, return_sparse=True).lexical_weights
    dense, sparse, hybrid = (for_open.query_body(question, mode=m) for m in ("dense", "sparse", "hybrid"))
    signature(OpenSearch().search).bind(index="library", body=hybrid)
    assert sparse["query"] == {"neural_sparse": {"sparse": {"query_tokens": weights}}}
    assert dense["query"]["knn"]["dense"]["k"] == 100
    assert hybrid["query"]["hybrid"] == {"queries": [dense["query"], sparse["query"]], "pagination_depth": 100}
    assert set(hybrid["query"]["hybrid"]) <= set(HybridQuery.DESCRIPTOR.fields_by_name)
    assert set(dense["query"]["knn"]["dense"]) <= set(KnnQuery.DESCRIPTOR.fields_by_name)
    (processor,) = hybrid["search_pipeline"]["phase_results_processors"]
    assert processor == {"score-ranker-processor": {"combination": {"technique": "rrf"}}}


def test_a_query_without_words_and_one_with_too_many(documents):
    assert documents.query_body("", mode="sparse")["query"] == {"match_none": {}}
    assert documents.query_body("")["size"] == 10
    assert "rrf" not in json.dumps(documents.query_body(""))
    many = " ".join(f"{chr(n)}" for n in range(0x4E00, 0x4E00 + 3000))
    text = json.dumps(documents.query_body(many, mode="sparse"))
    assert 100 < text.count('": ') <= 1_024 + 10


def test_answers_are_read_and_ordered_anew(documents, encoder, scores, library, question):
    rows = [
        {"_id": name, "_score": 0.5, "_source": {"text": text, "payload": {"n": n}}}
        for n, (name, text) in enumerate(library)
    ]
    hits = documents.hits({"hits": {"hits": rows}})
    assert hits[0] == Hit(Passage(library[0][0], library[0][1], {"n": 0}), 0.5)
    reranked = documents.rerank(question, hits)
    assert [h.passage.id for h in reranked] == sorted(scores["colbert"], key=lambda name: -scores["colbert"][name])


def test_an_add_puts_aside_what_cannot_go_in_and_can_be_repeated(documents):
    taken = {}

    def bulk(actions):
        if len(taken) >= 32 and not bulk.healthy:
            raise ConnectionError("the server is gone")
        taken.update({action["_id"]: action for action in actions})

    bulk.healthy = False
    texts = [Passage(n, f"text {n}") for n in range(40)] + [
        Passage("", "a"),
        Passage("i" * 513, "a"),
        Passage("39", "b"),
    ]
    with pytest.raises(PartlyAddedError, match="server is gone; 32 passages were written, the last with id 31"):
        documents.add(bulk, "library", texts)
    bulk.healthy = True
    added = documents.add(bulk, "library", texts)
    assert len(taken) == 40
    assert taken["39"]["_source"]["text"] == "b"
    assert added.put_aside == {
        "": "its id is empty",
        "i" * 513: "its id has 513 bytes, Elasticsearch or OpenSearch holds 512",
    }
    with pytest.raises(InputError, match="passage 'x': text must be a str"):
        documents.add(bulk, "library", [Passage("x", None)])


def test_mappings_know_what_fills_the_index(for_elastic, in_int8, stranger):
    mappings = for_elastic.index_body()["mappings"]
    with pytest.warns(VariantDriftWarning):
        ElasticsearchDocuments(in_int8).check(mappings)
    with pytest.raises(SpaceMismatchError):
        ElasticsearchDocuments(stranger).check(mappings)


def test_other_fields_are_named(documents):
    mappings = documents.index_body()["mappings"]
    documents.check(mappings)
    without = {**mappings, "properties": {"dense": mappings["properties"]["dense"]}}
    for found, reason in (
        ({}, "does not say which vector space"),
        (without, "field 'sparse' has the type nothing, expected"),
        ({**mappings, "properties": {"dense": {"type": "keyword"}}}, "field 'dense' has the type keyword, expected"),
    ):
        with pytest.raises(InputError, match=reason):
            documents.check(found)


def test_actions_of_what_is_no_passage_are_refused(documents):
    with pytest.raises(InputError, match="expected a Passage, got str"):
        documents.actions("library", ["Bees dance."])


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"mode": "reranked"}, "documents have no ColBERT rows; use mode 'hybrid', then `rerank`"),
        ({"mode": "fuzzy"}, "mode must be one of"),
        ({"limit": 0}, "limit must be an integer from 1, got 0"),
        ({"candidates": 10_001}, "limit and candidates must be at most 10000, got 10 and 10001"),
    ],
)
def test_a_bad_question_is_named(documents, asked, reason):
    with pytest.raises(InputError, match=reason):
        documents.query_body("a", **asked)
