import numpy as np
import pytest

from m3_runtime import InputError, TextTooLongError

KEYS = ["colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense"]
PAIRS = [("what is it", "it is a thing"), ("what is it", "nothing"), ("who", "it is a thing"), ("", "empty query")]


def test_scores_equal_those_of_the_vectors(encoder):
    scores = encoder.compute_score(PAIRS)
    assert list(scores) == KEYS
    for row, pair in enumerate(PAIRS):
        q, p = (encoder.encode(text, return_sparse=True, return_colbert_vecs=True) for text in pair)
        assert scores["dense"][row] == pytest.approx(float(q.dense_vecs @ p.dense_vecs), abs=1e-5)
        lexical = encoder.compute_lexical_matching_score(q.lexical_weights, p.lexical_weights)
        assert scores["sparse"][row] == pytest.approx(lexical, abs=1e-5)
        assert scores["colbert"][row] == pytest.approx(encoder.colbert_score(q.colbert_vecs, p.colbert_vecs), abs=1e-5)


def test_values_are_python_floats(encoder):
    assert {type(value) for values in encoder.compute_score(PAIRS).values() for value in values} == {float}


@pytest.mark.parametrize("pair", [("a b", "b c"), ["a b", "b c"]])
def test_one_pair_gives_floats(encoder, pair):
    one, many = encoder.compute_score(pair), encoder.compute_score([pair])
    assert list(one) == KEYS
    assert {key: [value] for key, value in one.items()} == many


def test_no_pairs_give_empty_lists(encoder):
    assert encoder.compute_score([]) == {key: [] for key in KEYS}


def test_scores_do_not_depend_on_the_step(encoder):
    whole = encoder.compute_score(PAIRS)
    for batch_size, budget in ((1, 16384), (2, 16384), (256, 1), (3, 20)):
        parts = encoder.compute_score(PAIRS, batch_size, token_budget=budget)
        for key in KEYS:
            np.testing.assert_allclose(parts[key], whole[key], atol=1e-5)


def test_weights_are_dense_sparse_colbert(encoder):
    plain = encoder.compute_score(PAIRS[0])
    weighted = encoder.compute_score(PAIRS[0], weights_for_different_modes=[0.5, 0.0, 0.5])
    expected = (plain["dense"] + plain["colbert"]) / 2
    assert weighted["colbert+sparse+dense"] == pytest.approx(expected, abs=1e-6)
    assert weighted["sparse+dense"] == pytest.approx(plain["dense"], abs=1e-6)


def test_sides_have_their_own_lengths(encoder):
    pair = ("one two three four five six", "one two three four five six")
    cut = encoder.compute_score(pair, max_query_length=4, max_passage_length=6)
    q = encoder.encode(pair[0], max_length=4)
    p = encoder.encode(pair[1], max_length=6)
    assert cut["dense"] == pytest.approx(float(q.dense_vecs @ p.dense_vecs), abs=1e-5)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", "b"), ("a",)], "pair 1 must be .query, passage., got tuple of 1"),
        ([("a", "b"), "ab"], "pair 1 must be"),
        ([("a", "b"), ("a", None)], "the passage of pair 1 must be a str"),
        ([(None, "b")], "the query of pair 0"),
        (("a", "b", "c"), "pair 0 must be"),
        ("ab", "expected a pair"),
        (None, "expected a pair"),
        ([("a", "\ud800")], "lone surrogate"),
    ],
)
def test_what_is_no_pair(encoder, pairs, message):
    with pytest.raises(InputError, match=message):
        encoder.compute_score(pairs)


def test_lengths_are_named(encoder):
    with pytest.raises(InputError, match="max_query_length must be at least 3"):
        encoder.compute_score(("a", "b"), max_query_length=2)
    with pytest.raises(InputError, match="max_passage_length is 100000"):
        encoder.compute_score(("a", "b"), max_passage_length=100_000)


LONG = "many words in a row"


def test_cut_texts_are_logged_and_counted(encoder, caplog):
    pairs = [("a", "b"), (LONG, "b"), (LONG, LONG)]
    scores = encoder.compute_score(pairs, 1, max_query_length=4, max_passage_length=5)
    assert type(scores) is dict
    assert [(record.name, record.levelname) for record in caplog.records] == [("m3_runtime", "WARNING")]
    assert "3 of the 6 texts" in caplog.text
    arrays = encoder.score_pairs(pairs, 1, 4, 5)
    assert arrays.truncated == 3
    assert scores["dense"] == arrays.dense.tolist()


def test_nothing_is_logged_when_nothing_is_cut(encoder, caplog):
    encoder.compute_score(PAIRS)
    assert not caplog.records
    assert encoder.score_pairs(PAIRS).truncated == 0


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ([("a", "b"), ("a", LONG), (LONG, "b")], "the query of pair 2 has"),
        ([("a", "b"), ("a", "b"), ("a", LONG), ("b", LONG)], "the passage of pair 2 has"),
    ],
)
def test_cut_texts_can_be_refused(encoder, pairs, named):
    with pytest.raises(TextTooLongError, match=named) as caught:
        encoder.compute_score(pairs, max_query_length=4, max_passage_length=4, on_truncate="error")
    assert (caught.value.index, caught.value.max_length) == (2, 4)
