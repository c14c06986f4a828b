"""Qdrant itself, in memory and in a folder."""

import numpy as np
import pytest
from qdrant_client import QdrantClient

from m3_runtime import InputError, PartlyAddedError, SpaceMismatchError, VariantDriftWarning
from m3_runtime.integrations import qdrant
from m3_runtime.integrations.qdrant import Mode, Passage, QdrantIndex

QUERY = "Who first climbed the second highest mountain on Earth?"


@pytest.fixture(scope="module")
def passages(library):
    return [Passage(i, text, {"name": name}) for i, (name, text) in enumerate(library)]


@pytest.fixture(scope="module")
def index(encoder, passages):
    client = QdrantClient(":memory:")
    made = QdrantIndex.create(client, "library", encoder)
    made.add(passages)
    yield made
    client.close()


@pytest.fixture(scope="module")
def scores(encoder, passages):
    """Our own scores of the query with every passage, by head, and how many ColBERT rows the query has."""
    texts = [passage.text for passage in passages]
    pairs = encoder.score_pairs([(QUERY, text) for text in texts])
    rows = len(encoder.encode(QUERY, return_colbert_vecs=True).colbert_vecs)
    return {"dense": pairs.dense, "sparse": pairs.sparse, "colbert": pairs.colbert * rows}


@pytest.mark.parametrize("mode", [Mode.DENSE, Mode.SPARSE, Mode.COLBERT])
def test_each_head_is_scored_as_we_score_it(index, scores, mode):
    ours = scores[mode.value]
    found = index.search(QUERY, limit=len(ours), mode=mode)
    assert len(found) == (np.count_nonzero(ours) if mode is Mode.SPARSE else len(ours))
    assert len(found) >= 3
    np.testing.assert_allclose([point.score for point in found], [ours[point.id] for point in found], rtol=1e-4)
    assert [point.id for point in found] == np.argsort(-ours, kind="stable")[: len(found)].tolist()


def test_hybrid_finds_what_either_ranking_has(index, scores):
    found = {point.id for point in index.search(QUERY, limit=15, candidates=2)}  # limit raises candidates
    assert found == set(range(15))
    first = index.search(QUERY, limit=2, candidates=2)
    leaders = {*np.argsort(-scores["dense"])[:2].tolist(), *np.argsort(-scores["sparse"])[:2].tolist()}
    assert {point.id for point in first} <= leaders


def test_a_number_of_hits_or_candidates_that_is_none_is_refused(index):
    with pytest.raises(InputError, match="limit must be an integer from 1, got 0"):
        index.search(QUERY, limit=0)
    with pytest.raises(InputError, match="candidates must be an integer from 1, got 2"):
        index.search(QUERY, candidates=2.5)


def test_reranked_is_colberts_order_of_the_candidates(index, scores):
    hybrid = {point.id for point in index.search(QUERY, limit=5, candidates=5)}
    reranked = index.search(QUERY, limit=3, mode="reranked", candidates=5)
    assert [p.id for p in reranked] == sorted((p.id for p in reranked), key=lambda i: -scores["colbert"][i])
    np.testing.assert_allclose([p.score for p in reranked], [scores["colbert"][p.id] for p in reranked], rtol=1e-4)
    assert hybrid & {p.id for p in reranked}
    assert reranked[0].payload["name"] == "en-k2"


def test_the_payload_comes_back_and_an_id_is_replaced(encoder):
    client = QdrantClient(":memory:")
    index = QdrantIndex.create(client, "one", encoder)
    index.add([Passage(7, "小熊猫吃竹子。", {"page": 3}), Passage(7, "", {"page": 4})])
    (point,) = index.search("anything", mode=Mode.DENSE)
    assert point.payload == {"page": 4, "text": ""}
    assert index.search("anything", mode=Mode.SPARSE) == []  # an empty text has no lexical weights
    client.close()


def test_any_text_is_an_id(encoder):
    client = QdrantClient(":memory:")
    index = QdrantIndex.create(client, "ids", encoder)
    uuid, digest = "0b6fd3a8-31a5-4d8c-9f3c-3f0f2f6a6b11", "d41d8cd98f00b204e9800998ecf8427e"
    ids = ["doc-1", "文档", "", uuid, digest, 7, np.uint64(2**64 - 1)]
    assert index.add(Passage(name, f"text {n}", {"n": n}) for n, name in enumerate(ids)).written == len(ids)
    points = {point.payload["n"]: point for point in index.search("text", limit=20, mode=Mode.DENSE)}
    assert [points[n].id for n in range(len(ids))] == [qdrant.point_id(name) for name in ids]
    named = [points[n].payload.get("passage_id", points[n].id) for n in range(len(ids))]
    assert named == ids
    index.add([Passage("doc-1", "another text")])
    assert client.count("ids").count == len(ids)
    client.close()


@pytest.mark.parametrize(
    ("passage", "reason"),
    [
        (Passage(-1, "a"), "passage -1: Qdrant's ids are from 0"),
        (Passage(2**64, "a"), "Qdrant's ids are from 0"),
        (Passage(1.0, "a"), "must be an int or a str, got float"),
        (Passage(b"x", "a"), "must be an int or a str, got bytes"),
        (Passage(1, "a", {"text": "b"}), "its payload has another 'text'"),
        (Passage("x", "a", {"passage_id": "y"}), "its payload has another 'passage_id'"),
        (Passage(1, None), "passage 1: text must be a str"),
    ],
)
def test_bad_passages_are_refused_before_anything_is_encoded(index, passages, passage, reason):
    with pytest.raises(InputError, match=reason):
        index.add([Passage(99, "a fine text"), passage])
    assert len(index.search("a", limit=50, mode=Mode.DENSE)) == len(passages)


def test_a_failed_add_says_what_was_written_and_can_be_repeated(encoder):
    class Failing(QdrantClient):
        left = 2

        def upsert(self, *words, **more):
            self.left -= 1
            if self.left < 0:
                raise ConnectionError("the server is gone")
            return super().upsert(*words, **more)

    client = Failing(":memory:")
    index = QdrantIndex.create(client, "failing", encoder)
    texts = [Passage(f"doc-{n}", f"text {n}") for n in range(80)]
    with pytest.raises(PartlyAddedError, match="server is gone; 64 passages were written, the last with id 'doc-63'"):
        index.add(texts)
    client.left = 100
    assert index.add(texts).written == client.count("failing").count == 80
    client.close()


def test_more_than_one_request(encoder, monkeypatch):
    sizes = []

    class Counting(QdrantClient):
        def upsert(self, name, points, **more):
            sizes.append(sum(len(p.vector["colbert"]) for p in points))
            return super().upsert(name, points, **more)

    monkeypatch.setattr(qdrant, "_UPSERT_NUMBERS", 30 * encoder.bundle.manifest.geometry.colbert_dim)
    client = Counting(":memory:")
    index = QdrantIndex.create(client, "many", encoder)
    index.add(Passage(i, f"number {i}" + " long" * 40 * (i == 9)) for i in range(40))
    assert client.count("many").count == 40
    assert sorted(sizes)[-2] <= 30 < max(sizes)  # the long text goes alone
    assert 6 <= len(sizes) <= 12
    assert index.search("number 39", limit=1, mode=Mode.COLBERT)[0].payload["text"] == "number 39"
    client.close()


def test_a_folder_knows_what_filled_it(encoder, in_int8, stranger, tmp_path):
    client = QdrantClient(path=str(tmp_path / "db"))
    QdrantIndex.create(client, "kept", encoder).add([Passage(1, "Bees dance.")])
    client.close()

    client = QdrantClient(path=str(tmp_path / "db"))
    assert QdrantIndex.open(client, "kept", encoder).search("Bees", limit=1)[0].payload["text"] == "Bees dance."
    with pytest.warns(VariantDriftWarning):
        QdrantIndex.open(client, "kept", in_int8)
    with pytest.raises(SpaceMismatchError):
        QdrantIndex.open(client, "kept", stranger)
    client.create_collection("foreign", vectors_config={})
    with pytest.raises(InputError, match="foreign"):
        QdrantIndex.open(client, "foreign", encoder)
    client.close()


def test_bad_input_is_named(index):
    with pytest.raises(InputError, match="passage 40"):
        index.add([Passage(40, None)])
    with pytest.raises(InputError, match="mode must be one of dense, sparse"):
        index.search(QUERY, mode="fuzzy")
    with pytest.raises(InputError, match="limit must be an integer from 1, got 0"):
        index.search(QUERY, limit=0)
    assert len(index.search(QUERY, limit=100, mode=Mode.DENSE)) == 15  # nothing was added
