"""LanceDB itself, in a folder."""

import numpy as np
import pytest

from m3_runtime import InputError, PartlyAddedError, SpaceMismatchError, VariantDriftWarning
from m3_runtime.integrations.lancedb import LanceIndex, Passage

HALF = 2e-3  # ColBERT rows are kept as float16


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    import lancedb  # here, because it starts a thread

    return lancedb.connect(tmp_path_factory.mktemp("lance"))


@pytest.fixture(scope="module")
def index(db, encoder, library):
    made = LanceIndex.create(db, "library", encoder)
    assert made.add(Passage(name, text, {"lang": name[:2]}) for name, text in library).written == len(library)
    return made


@pytest.mark.parametrize("head", ["dense", "sparse", "colbert"])
def test_each_head_is_scored_as_we_score_it(index, scores, question, head):
    ours = {name: score for name, score in scores[head].items() if head != "sparse" or score > 0}
    found = index.search(question, limit=100, mode=head)
    assert {hit.passage.id for hit in found} == set(ours)
    assert len(found) >= 3
    np.testing.assert_allclose([hit.score for hit in found], [ours[hit.passage.id] for hit in found], atol=HALF)
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


@pytest.mark.parametrize("keeps_rows", [True, False])
def test_hybrid_and_reranked(db, index, encoder, scores, library, question, keeps_rows):
    if not keeps_rows:
        index = LanceIndex.create(db, "lean", encoder, colbert=False)
        index.add(Passage(name, text, {"lang": name[:2]}) for name, text in library)
        with pytest.raises(InputError, match="does not rank by colbert; use one of dense, sparse, hybrid, reranked"):
            index.search(question, mode="colbert")
    leaders = {
        name for head in ("dense", "sparse") for name in sorted(scores[head], key=lambda n: -scores[head][n])[:2]
    }
    assert {hit.passage.id for hit in index.search(question, limit=2, candidates=1)} <= leaders
    assert len(index.search(question, limit=len(library))) == len(library)
    reranked = index.search(question, limit=3, candidates=len(library), mode="reranked")
    assert [hit.passage.id for hit in reranked] == sorted(scores["colbert"], key=lambda n: -scores["colbert"][n])[:3]
    ours = [scores["colbert"][hit.passage.id] for hit in reranked]
    np.testing.assert_allclose([hit.score for hit in reranked], ours, atol=HALF)
    assert reranked[0].passage == Passage("en-k2", dict(library)["en-k2"], {"lang": "en"})


@pytest.mark.parametrize("mode", ["dense", "sparse", "colbert", "hybrid", "reranked"])
def test_a_filter_holds_in_every_mode(index, mode):
    with pytest.raises(InputError, match="LanceDB cannot search with the filter 'no_column = 1'"):
        index.search("a", mode=mode, filter="no_column = 1")
    found = index.search("造纸 paper 1953", mode=mode, filter="json_get_string(payload, 'lang') = 'zh'")
    assert found
    assert {hit.passage.payload["lang"] for hit in found} == {"zh"}


def test_any_text_goes_in_and_an_id_is_replaced(db, encoder):
    index = LanceIndex.create(db, "ids", encoder)
    index.add([Passage(7, "first"), Passage("7", "second"), Passage("it's", ""), Passage("a\0", "…\0", {"n": 2**70})])
    index.add([Passage("7", "third", {"page": 4})])
    wanted = {
        "7": Passage("7", "third", {"page": 4}),
        "it's": Passage("it's", ""),
        "a\0": Passage("a\0", "…\0", {"n": 2**70}),
    }
    for mode in ("dense", "reranked"):
        found = index.search("first", mode=mode)
        assert {hit.passage.id: hit.passage for hit in found} == wanted
    assert [hit.passage.id for hit in index.search("third", mode="sparse")] == ["7"]
    assert index.search("", mode="sparse") == []


@pytest.mark.parametrize(
    ("passage", "reason"),
    [
        (Passage("x", None), "passage 'x': text must be a str"),
        (Passage(1.5, "a"), "passage 1.5: its id must be an int or a str, got float"),
        (Passage("x", "a", {"when": {1, 2}}), "passage 'x': its payload cannot be written as JSON"),
    ],
)
def test_bad_passages_are_named_and_nothing_is_written(db, index, library, passage, reason):
    with pytest.raises(InputError, match=reason):
        index.add([Passage("fine", "a fine text"), passage])
    assert db.open_table("library").count_rows() == len(library)


def test_an_add_that_stops_half_way_says_so_and_can_be_repeated(db, encoder):
    index = LanceIndex.create(db, "half", encoder)
    texts = [Passage(n, f"text {n}") for n in range(70)]

    def stopping():
        yield from texts[:67]
        db.drop_table("half")
        yield from texts[67:]

    with pytest.raises(PartlyAddedError, match="64 passages were written, the last with id 63"):
        index.add(stopping())
    index = LanceIndex.create(db, "half", encoder)
    for _ in range(2):
        assert index.add(texts).written == db.open_table("half").count_rows() == 70


def test_a_table_knows_what_filled_it(db, index, encoder, in_int8, stranger):
    assert LanceIndex.open(db, "library", encoder).search("K2", limit=1)[0].passage.id == "en-k2"
    with pytest.warns(VariantDriftWarning):
        LanceIndex.open(db, "library", in_int8)
    with pytest.raises(SpaceMismatchError):
        LanceIndex.open(db, "library", stranger)
    for name, reason in (("library", "already exists"), ("a/b", "cannot create a table 'a/b'.*alphanumeric")):
        with pytest.raises(InputError, match=reason):
            LanceIndex.create(db, name, encoder)
    db.create_table("foreign", [{"id": "a", "vector": [0.5, 0.5]}])
    LanceIndex.create(db, "narrow", encoder)
    db.open_table("narrow").drop_columns(["token_weights"])
    for name, reason in (
        ("foreign", "does not say which vector space"),
        ("absent", "cannot open a table 'absent'.*not found"),
        ("n" * 300, "cannot open a table 'nnn"),
        (None, "cannot open a table None"),
        ("narrow", "its column 'token_weights' was created as list.* and is gone"),
    ):
        with pytest.raises(InputError, match=reason):
            LanceIndex.open(db, name, encoder)


def test_the_pages_example(docs_code, encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = docs_code("LanceDB")
    exec(compile(example, "integrations.md", "exec"), {"encoder": encoder})  # as a reader runs it
    assert "Bees dance" in capsys.readouterr().out
