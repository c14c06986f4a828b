"""The parts of a search: words, BM25, rankings, MaxSim, first and second stage; against plain computations."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.sparse import csr_matrix

from m3_bench.retrieval import search
from m3_bench.retrieval.hybrids import PUBLISHED, Hybrid, parse_weights, possible
from m3_bench.retrieval.keywords import K1, B, Bm25, StaticVectors, TfIdf, WordTable
from m3_bench.retrieval.search import (
    METRICS,
    best,
    best_above_zero,
    colbert_scores,
    first_stage,
    measured,
    second_stage,
    words_of,
)  # fmt: skip
from m3_bench.retrieval.vectors import TextVectors
from m3_runtime.bundle.manifest import Head
from m3_runtime.errors import InputError
from m3_runtime.scoring import FusionWeights, PairScores, colbert_score


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Cat's café, 2nd!", ["the", "cat", "s", "café", "2nd"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("हिन्दी में लिखा है।", ["हिन्दी", "में", "लिखा", "है"]),
        ("مرحبا بالعالم؟", ["مرحبا", "بالعالم"]),
        ("한글은 언제", ["한글은", "언제"]),
        ("新幹線", ["新幹", "幹線"]),
        ("河", ["河"]),
        ("ข้าว rice", ["ข้", "้า", "าว", "rice"]),
        ("ＡＢＣ１２", ["abc12"]),
        ("e\u0301", ["é"]),
        ("  —…!  ", []),
        ("", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_best_is_a_stable_sort():
    draws = np.random.default_rng(0)
    for _ in range(50):
        scores = draws.integers(0, 6, 40).astype(np.float32)  # many ties
        expected = sorted(range(40), key=lambda place: (-scores[place], place))
        for most in (1, 7, 39, 40, 100):
            assert best(scores, most).tolist() == expected[:most]
            assert best_above_zero(scores, most).tolist() == [p for p in expected[:most] if scores[p] > 0]


def test_bm25_is_lucenes_formula():
    documents = [["a", "b", "b"], ["a"], ["c", "c", "c", "d"], []]
    lengths, n = np.array([3, 1, 4, 0]), 4
    counts = {"a": [1, 1, 0, 0], "b": [2, 0, 0, 0], "c": [0, 0, 3, 0]}

    def score(term: str) -> np.ndarray:
        tf = np.array(counts[term])
        df = (tf > 0).sum()
        idf = np.log(1 + (n - df + 0.5) / (df + 0.5))
        return idf * tf / (tf + K1 * (1 - B + B * lengths / lengths.mean()))

    queries = [["a", "b"], ["c", "a", "unknown"], ["unknown"], [], ["a"]]
    index = Bm25(documents)
    found = [best_above_zero(index.scores(tokens), 10) for tokens in queries]
    expected = [score("a") + score("b"), score("c") + score("a"), np.zeros(4), np.zeros(4), score("a")]
    for places, scores in zip(found, expected, strict=True):
        assert places.tolist() == [p for p in np.argsort(-scores, kind="stable").tolist() if scores[p] > 0]
    assert [len(places) for places in found] == [2, 3, 0, 0, 2]


def test_bm25_without_any_token_finds_nothing():
    index = Bm25([[], []])
    assert not any(index.scores(tokens).any() for tokens in (["a"], []))


def test_tf_idf_is_a_cosine():
    documents = [["a", "b", "b"], ["a"], ["c"], []]
    idf_a, idf_b = np.log(5 / 3) + 1, np.log(5 / 2) + 1
    index = TfIdf(documents)
    length = np.hypot(idf_a, 2 * idf_b)
    expected = (idf_a * idf_a + idf_b * 2 * idf_b) / length / np.hypot(idf_a, idf_b)
    np.testing.assert_allclose(index.scores(["b", "a", "unknown"])[:1], expected, rtol=1e-5)
    np.testing.assert_allclose(index.scores(["a"]), [idf_a / length, 1, 0, 0], rtol=1e-5)
    assert not index.scores(["unknown"]).any()
    assert not TfIdf([[], []]).scores(["a"]).any()
    assert Bm25([[], []]).nbytes == 0


def test_word_vectors_are_the_models_table(encoder, tiny_random_checkpoint):
    table = WordTable.of(encoder.bundle)
    ids = np.array([5, 9, 5], np.int32)
    words = load_file(tiny_random_checkpoint / "model.safetensors")["embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(table.rows(ids), words[ids])
    variants = tuple(one for one in encoder.bundle.manifest.variants if one.name == "onnx-int8")
    int8 = replace(encoder.bundle, manifest=replace(encoder.bundle.manifest, variants=variants))
    np.testing.assert_allclose(WordTable.of(int8).rows(ids), words[ids], atol=np.abs(words).max() / 100)
    none = replace(encoder.bundle, manifest=replace(encoder.bundle.manifest, variants=()))
    with pytest.raises(InputError, match="no ONNX variant with a word embedding"):
        WordTable.of(none)


def test_word_vectors_find_the_same_words(encoder):
    index = StaticVectors(encoder, ["one two three", "four five", "six"], None)
    assert index.scores("five four").argmax() == 1
    np.testing.assert_allclose(np.linalg.norm(index.vectors, axis=1), 1, atol=1e-5)
    assert not index.scores("").any()


@pytest.mark.parametrize("texts", [["one two"], ["one two", "one two"], ["one two", ""]])
def test_word_vectors_of_one_text_do_not_vanish(encoder, texts):
    assert StaticVectors(encoder, texts, None).scores("two")[0] > 0.1


def test_word_vectors_of_no_words_find_nothing(encoder):
    assert not StaticVectors(encoder, ["", " "], None).scores("two").any()


def rows(draws, *lengths: int, width: int = 8) -> list[np.ndarray]:
    return [draws.normal(size=(length, width)).astype(np.float32) for length in lengths]


def test_candidates_are_scored_in_their_order_however_documents_come():
    draws = np.random.default_rng(2)
    documents = [one.astype(np.float16) for one in rows(draws, 4, 2, 7, 1, 3, 5)]
    queries = [one.astype(np.float16) for one in rows(draws, 3, 6)]
    candidates = [np.array([0, 2, 5]), np.array([1, 2, 3, 4])]
    expected = [
        [colbert_score(query, documents[place]) for place in places.tolist()]
        for query, places in zip(queries, candidates, strict=True)
    ]
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]):
        found = colbert_scores(queries, candidates, [(place, documents[place]) for place in order])
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5)


DENSE = np.array([[0.9, 0.1, 0.8, 0.1], [0.2, 0.2, 0.2, 0.2]], dtype=np.float32)
SPARSE = np.array([[0.0, 2.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.4]], dtype=np.float32)


def vectors(dense: np.ndarray, sparse: np.ndarray | None) -> TextVectors:
    return TextVectors(dense, None if sparse is None else csr_matrix(sparse), 0)


def orders(ranked) -> dict[str, list[list[int]]]:
    return {method: [indices.tolist() for indices in ranking] for method, ranking in ranked.items()}


def test_first_stage_ranks_heads_and_their_sum():
    identity = np.eye(4, dtype=np.float32)
    stage = first_stage(vectors(DENSE, SPARSE), vectors(identity, identity), [Hybrid(1, 0.3), Hybrid(1, 1, 1)], 2)
    assert orders(stage.ranked) == {
        "dense": [[0, 2, 1, 3], [0, 1, 2, 3]],
        "sparse": [[1, 2], [3]],
        # 0.9, 0.1 + 0.6, 0.8 + 0.15, 0.1
        "dense+sparse 1/0.3": [[2, 0, 1, 3], [3, 0, 1, 2]],
    }
    assert [one.indices.tolist() for one in stage.candidates] == [[0, 2], [0, 1]]
    assert stage.wanted.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(stage.candidates[0].sparse, SPARSE[0, [0, 2]])


def test_second_stage_ranks_candidates_alone():
    identity = np.eye(4, dtype=np.float32)
    hybrids = [Hybrid(1, 0.3), Hybrid(1, 0.3, 1), Hybrid(0, 1, 0.1)]
    stage = first_stage(vectors(DENSE, SPARSE), vectors(identity, identity), hybrids, 3)
    colbert = [np.array([0.1, 0.9, 0.1], dtype=np.float32), np.array([0.5, 0.5, 0.6], dtype=np.float32)]
    assert orders(second_stage(stage, colbert, hybrids)) == {
        "colbert": [[1, 0, 2], [2, 0, 1]],
        # query 0: 0.9 + 0.1, 0.1 + 0.6 + 0.9, 0.8 + 0.15 + 0.1
        "all 1/0.3/1": [[1, 2, 0], [2, 0, 1]],
        "all 0/1/0.1": [[1, 2, 0], [2, 0, 1]],
    }


def test_first_stage_without_a_sparse_head():
    identity = np.eye(4, dtype=np.float32)
    stage = first_stage(vectors(DENSE, None), vectors(identity, None), [], 4)
    assert list(orders(stage.ranked)) == ["dense"]


def test_a_head_counts_nothing_for_a_document_beyond_its_depth(monkeypatch):
    monkeypatch.setattr(search, "UNION_DEPTH", 1)
    identity = np.eye(4, dtype=np.float32)
    stage = first_stage(vectors(DENSE, SPARSE), vectors(identity, identity), [Hybrid(1, 0.3)], 1)
    # 0 is dense's best (0.9), 1 is sparse's (0.6); 2, with 0.95 in all, is in neither
    assert orders(stage.ranked)["dense+sparse 1/0.3"][0] == [0, 1]


def test_blocks_of_queries_change_nothing(monkeypatch):
    draws = np.random.default_rng(3)
    queries = vectors(draws.normal(size=(9, 8)).astype(np.float32), np.abs(draws.normal(size=(9, 6))))
    documents = vectors(draws.normal(size=(20, 8)).astype(np.float32), np.abs(draws.normal(size=(20, 6))))
    whole = first_stage(queries, documents, PUBLISHED, 5)
    monkeypatch.setattr(search, "_SCORES_AT_ONCE", 40)
    assert orders(first_stage(queries, documents, PUBLISHED, 5).ranked) == orders(whole.ranked)


def test_sums_order_as_flagembeddings_compute_score():
    draws = np.random.default_rng(4)
    dense, sparse, colbert = draws.random((3, 30)).astype(np.float32)
    for weights in PUBLISHED[2:]:
        combined = PairScores(dense, sparse, colbert).combined(FusionWeights.from_sequence(weights.weights))
        expected = best(np.array(combined["colbert+sparse+dense"]), 30)
        assert best(weights.fused(dense, sparse, colbert), 30).tolist() == expected.tolist()


def test_weights():
    assert parse_weights("1,0.3,1") == Hybrid(1, 0.3, 1)
    assert parse_weights(" 0.2 , 0.8").heads == (Head.DENSE, Head.SPARSE)
    assert [hybrid.name for hybrid in possible(PUBLISHED, [Head.DENSE, Head.SPARSE])] == [
        "dense+sparse 1/0.3",
        "dense+sparse 0.2/0.8",
    ]
    assert possible(PUBLISHED, [Head.DENSE]) == ()


@pytest.mark.parametrize("text", ["", "1", "1,2,3,4", "a,b", "0,0", "-1,2", "nan,1", "inf,1,1"])
def test_weights_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="--weights"):
        parse_weights(text)


def test_measures_on_values_worked_out_by_hand():
    ranking = [np.array([4, 0, 2]), np.array([1]), np.array([], dtype=np.int64), np.arange(100)]
    relevant = [{0: 1, 3: 1}, {1: 2}, {5: 1}, {10: 1, 99: 1, 5: 2}]
    got = measured(ranking, relevant)
    assert tuple(got) == METRICS
    ideal = 1 + 1 / np.log2(3)
    ideal_graded = 2 + 1 / np.log2(3) + 1 / np.log2(4)
    expected = {
        "nDCG@10": [(1 / np.log2(3)) / ideal, 1, 0, (2 / np.log2(7)) / ideal_graded],
        "R@10": [0.5, 1, 0, 1 / 3],
        "R@100": [0.5, 1, 0, 1],
        "RR@10": [0.5, 1, 0, 1 / 6],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, atol=1e-6)
