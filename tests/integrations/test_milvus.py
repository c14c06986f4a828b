"""Milvus Lite itself, in a file."""

import pickle

import numpy as np
import pytest
from pymilvus import DataType, MilvusClient
from scipy.sparse import csr_array

from m3_runtime import (
    BundleNotFoundError,
    InputError,
    PartlyAddedError,
    SpaceMismatchError,
    VariantDriftWarning,
)
from m3_runtime.ignored import IgnoredArgumentWarning
from m3_runtime.integrations.milvus import BGEM3EmbeddingFunction, MilvusIndex, Mode, Passage

QUERY = "Who first climbed the second highest mountain on Earth?"


@pytest.fixture(scope="module")
def function(mini_bundle):
    return BGEM3EmbeddingFunction(
        str(mini_bundle), device="cpu", use_fp16=False, return_colbert_vecs=True, variant="onnx-fp32", threads=1
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(tmp_path_factory.mktemp("milvus") / "library.db")


@pytest.fixture(scope="module")
def client(path):
    opened = MilvusClient(path)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def index(client, encoder, library):
    made = MilvusIndex.create(client, "library", encoder)
    made.add(Passage(name, text, {"lang": name[:2]}) for name, text in library)
    return made


def best(scores, most):
    return sorted((name for name in scores if scores[name] > 0), key=lambda name: -scores[name])[:most]


def test_the_function_gives_what_pymilvus_gives(function, encoder, library):
    texts = [text for _, text in library[:3]]
    found = function.encode_documents(texts)
    ours = encoder.encode(texts, return_sparse=True, return_colbert_vecs=True)
    assert list(found) == ["dense", "sparse", "colbert_vecs"]
    assert isinstance(found["dense"], list)
    np.testing.assert_allclose(found["dense"], ours["dense_vecs"], atol=1e-6)
    assert isinstance(found["sparse"], csr_array)
    assert found["sparse"].shape == (3, function.dim["sparse"])
    for row, weights in enumerate(ours["lexical_weights"]):
        line = found["sparse"]._getrow(row)  # as Milvus' own pages take a row
        assert dict(zip(map(str, line.indices.tolist()), line.data.tolist(), strict=True)) == pytest.approx(weights)
    assert [rows.shape[1] for rows in found["colbert_vecs"]] == [function.dim["colbert_vecs"]] * 3
    assert function.dim["dense"] == found["dense"][0].shape[0]
    again = function(texts), function.encode_queries(texts)
    assert all((one["sparse"] != found["sparse"]).nnz == 0 for one in again)


def test_rows_of_the_sparse_matrix_can_be_gone_through(function, client):
    texts = ["bees dance", "a road"]
    found = function.encode_documents(texts)
    assert [row.shape for row in found["sparse"]] == [(1, function.dim["sparse"])] * 2
    schema = client.create_schema(auto_id=False)
    schema.add_field("name", DataType.VARCHAR, is_primary=True, max_length=100)
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    client.create_collection("rows", schema=schema)
    rows = [{"name": name, "sparse": row} for name, row in zip(texts, found["sparse"], strict=True)]
    assert client.insert("rows", rows)["insert_count"] == 2
    sparse = found["sparse"]
    chosen = [sparse[0], sparse[np.int64(1)], sparse[-1], sparse[[1]], sparse[1:2], *sparse[:2]]
    assert [row.shape[0] for row in chosen] == [1] * 7
    rows = [{"name": str(place), "sparse": row} for place, row in enumerate(chosen)]
    assert client.insert("rows", rows)["insert_count"] == 7
    token = int(sparse[0].indices[0])
    assert sparse[0, token] == sparse[0].data[0]


def test_the_function_takes_what_pymilvus_takes(mini_bundle, function, encoder):
    long = "one two three four five six"
    with pytest.warns(IgnoredArgumentWarning, match="cuda"):
        made = BGEM3EmbeddingFunction(
            mini_bundle, device="cpu", devices="cuda:0", return_sparse=False, query_max_length=4, passage_max_length=4,
            cache_dir="/nowhere", trust_remote_code=True, variant="onnx-fp32", threads=1,
        )  # fmt: skip
    np.testing.assert_array_equal(made([long])["dense"][0], encoder.encode(long, max_length=4).dense_vecs)
    single, listed = function.encode_queries("one text"), function.encode_queries(["one text"])
    np.testing.assert_array_equal(single["dense"], listed["dense"])
    assert single["sparse"].shape == (1, function.dim["sparse"])
    with pytest.warns(IgnoredArgumentWarning, match="no_such_argument"):
        BGEM3EmbeddingFunction(mini_bundle, no_such_argument=1, threads=1)


def test_the_function_refuses_what_it_cannot_do(mini_bundle, function):
    with pytest.raises(BundleNotFoundError, match=r"'BAAI/bge-m3'.* m3-export SOURCE OUT"):
        BGEM3EmbeddingFunction(use_fp16=False, device="cpu")
    with pytest.raises(InputError, match="text 1 must be a str"):
        function.encode_queries(["one text", None])
    assert list(BGEM3EmbeddingFunction(mini_bundle, return_dense=False, threads=1)(["a text"])) == ["sparse"]


def test_the_functions_vectors_go_into_a_collection_of_ones_own(function, client, library):
    """The steps of Milvus' own page on BGE-M3."""
    schema = client.create_schema(auto_id=False)
    schema.add_field("name", DataType.VARCHAR, is_primary=True, max_length=100)
    schema.add_field("dense", DataType.FLOAT_VECTOR, dim=function.dim["dense"])
    schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
    indexes = client.prepare_index_params()
    indexes.add_index("dense", index_type="AUTOINDEX", metric_type="IP")
    indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
    client.create_collection("own", schema=schema, index_params=indexes, consistency_level="Strong")
    found = function.encode_documents([text for _, text in library])
    rows = zip(library, found["dense"], range(len(library)), strict=True)
    client.insert("own", [{"name": n, "dense": d, "sparse": found["sparse"]._getrow(i)} for (n, _), d, i in rows])
    question = function.encode_queries([QUERY])
    for field, vector in (("dense", question["dense"][0]), ("sparse", question["sparse"]._getrow(0))):
        (hits,) = client.search("own", [vector], anns_field=field, limit=1, search_params={"metric_type": "IP"})
        assert [hit["name"] for hit in hits] == ["en-k2"]


@pytest.mark.parametrize("mode", [Mode.DENSE, Mode.SPARSE])
def test_each_head_is_scored_as_we_score_it(index, scores, mode):
    ours = scores[mode.value]
    found = index.search(QUERY, limit=5, mode=mode)
    assert [hit.passage.id for hit in found] == best(ours, 5)
    np.testing.assert_allclose([hit.score for hit in found], [ours[hit.passage.id] for hit in found], rtol=1e-4)


def test_hybrid_and_reranked(index, scores, library):
    found = index.search(QUERY, limit=2, candidates=2)
    assert {hit.passage.id for hit in found} <= {*best(scores["dense"], 2), *best(scores["sparse"], 2)}
    reranked = index.search(QUERY, limit=len(library), mode="reranked")
    assert [hit.passage.id for hit in reranked] == best(scores["colbert"], len(library))
    expected = [scores["colbert"][hit.passage.id] for hit in reranked]
    np.testing.assert_allclose([hit.score for hit in reranked], expected, rtol=1e-4)
    assert reranked[0].passage == Passage("en-k2", dict(library)["en-k2"], {"lang": "en"})


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid", "reranked"])
def test_a_filter_holds_in_every_mode(index, mode):
    found = index.search("造纸 paper 1953", mode=mode, filter='payload["lang"] == "zh"')
    assert found
    assert {hit.passage.payload["lang"] for hit in found} == {"zh"}


def test_a_query_without_words(index):
    assert index.search("", mode="sparse") == []
    assert len(index.search("", limit=3)) == 3


def test_an_id_is_replaced(client, encoder):
    index = MilvusIndex.create(client, "one", encoder)
    index.add([Passage(7, "first"), Passage(7, "second")])
    index.add([Passage("7", "third", {"page": 4})])
    assert [hit.passage for hit in index.search("first", mode="dense")] == [Passage("7", "third", {"page": 4})]
    with pytest.raises(InputError, match="there is a collection 'one'"):
        MilvusIndex.create(client, "one", encoder)


def count(client, name):
    return client.query(name, filter="", output_fields=["count(*)"])[0]["count(*)"]


@pytest.mark.parametrize(
    ("passage", "reason"),
    [
        (Passage("x", None), "passage 'x': text must be a str"),
        (Passage(1.5, "a"), "passage 1.5: its id must be an int or a str, got float"),
        (Passage(True, "a"), "passage True: its id"),
        (Passage("x", "a", ["page"]), "passage 'x': payload must be a mapping"),
        (Passage("x", "a", {"a": 1, 2: 3}), "passage 'x': keys of its payload must be str, got 2"),
        (Passage("x", "\ud800"), "passage 'x': text has a lone surrogate"),
        ("a text", "expected a Passage, got str"),
        ({"id": 1, "text": "a"}, "expected a Passage, got dict"),
    ],
)
def test_bad_passages_are_named_and_nothing_is_written(client, index, encoder, library, passage, reason):
    with pytest.raises(InputError, match=reason):
        index.add([Passage("fine", "a fine text"), passage])
    assert count(client, "library") == len(library)


def test_what_is_no_list_of_passages(index):
    for given in (Passage("x", "a"), {"x": "a"}, None):
        with pytest.raises(InputError, match="expected passages, got"):
            index.add(given)
    assert index.add([]).written == 0


def test_colbert_alone_is_not_there(index):
    with pytest.raises(InputError, match="reranked"):
        index.search("a", mode="colbert")
    with pytest.raises(InputError, match="limit must be an integer from 1, got 0"):
        index.search("a", limit=0)


WITHOUT_WORDS = ["", " ", "\u200b", "\n"]


def test_texts_without_lexical_weights_go_in(client, encoder):
    index = MilvusIndex.create(client, "empty", encoder)
    texts = [f"Bees number {n} dance." for n in range(40)] + WITHOUT_WORDS
    assert not any(encoder.encode(WITHOUT_WORDS, return_sparse=True)["lexical_weights"])
    added = index.add(Passage(n, text) for n, text in enumerate(texts))
    assert (added.written, added.put_aside) == (44, {})
    assert count(client, "empty") == 44
    assert {hit.passage.text for hit in index.search("", limit=4, mode="dense")} == set(WITHOUT_WORDS)
    found = index.search("Bees dance", limit=44, mode="sparse")
    assert {hit.passage.text for hit in found}.isdisjoint(WITHOUT_WORDS)
    assert found


def test_what_milvus_cannot_hold_is_put_aside_and_the_rest_goes_in(client, encoder, caplog):
    index = MilvusIndex.create(client, "long", encoder)
    long, wide = Passage("long", "字" * 30_000), Passage("i" * 513, "a text")
    added = index.add([long, Passage("a", "first"), wide, *(Passage(n, f"text {n}") for n in range(40))])
    assert added.written == count(client, "long") == 41
    assert added.put_aside == {
        "long": "its text has 90000 bytes, Milvus holds 65535; split it",
        wide.id: "its id has 513 bytes, Milvus holds 512",
    }
    assert "'long' was not added" in caplog.text


@pytest.mark.parametrize("error", [ConnectionError("the source is gone"), KeyboardInterrupt()])
def test_an_add_that_stops_half_way_says_so_and_can_be_repeated(client, encoder, error):
    name = type(error).__name__
    index = MilvusIndex.create(client, name, encoder)
    texts = [Passage(n, f"text {n}") for n in range(70)]

    def stopping():
        yield from texts[:67]
        raise error

    if isinstance(error, Exception):
        with pytest.raises(PartlyAddedError, match="the source is gone; 64 passages were written, the last") as caught:
            index.add(stopping())
        assert caught.value.__cause__ is error
        assert (caught.value.written, caught.value.last_id) == (64, 63)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    else:
        with pytest.raises(KeyboardInterrupt) as interrupted:
            index.add(stopping())
        assert "64 passages were written, the last with id 63" in interrupted.value.__notes__[-1]
    assert count(client, name) == 64
    assert index.add(texts).written == count(client, name) == 70


def test_a_bad_passage_after_many_says_what_was_written(client, encoder):
    index = MilvusIndex.create(client, "late", encoder)
    with pytest.raises(PartlyAddedError, match=r"passage 'x': text must be a str, got NoneType; 32 passages were"):
        index.add([*(Passage(n, f"text {n}") for n in range(32)), Passage("x", None)])
    assert count(client, "late") == 32


def test_a_file_knows_what_filled_it(encoder, in_int8, stranger, tmp_path):
    client = MilvusClient(str(tmp_path / "kept.db"))
    MilvusIndex.create(client, "kept", encoder).add([Passage("bees", "Bees dance.")])
    client.create_collection("foreign", dimension=4)
    client.close()

    client = MilvusClient(str(tmp_path / "kept.db"))
    (hit,) = MilvusIndex.open(client, "kept", encoder).search("Bees")
    assert hit.passage.text == "Bees dance."
    with pytest.warns(VariantDriftWarning):
        MilvusIndex.open(client, "kept", in_int8)
    with pytest.raises(SpaceMismatchError):
        MilvusIndex.open(client, "kept", stranger)
    for name, reason in (("foreign", "does not say"), ("absent", "no collection")):
        with pytest.raises(InputError, match=reason):
            MilvusIndex.open(client, name, encoder)
    client.close()
