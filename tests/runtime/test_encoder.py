import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from m3_runtime import Bundle, EngineError, HeadError, InputError, M3Encoder, TextTooLongError
from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.options import encode_options

ALL = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
FLOAT_NOISE = 1e-5


def close(a, b, i: int, j: int, tolerance: float = FLOAT_NOISE) -> None:
    """Text i of one encoding equals text j of another."""
    np.testing.assert_allclose(a["dense_vecs"][i], b["dense_vecs"][j], atol=tolerance)
    np.testing.assert_allclose(a["colbert_vecs"][i], b["colbert_vecs"][j], atol=tolerance)
    left, right = a["lexical_weights"][i], b["lexical_weights"][j]
    for token in left.keys() | right.keys():
        assert left.get(token, 0.0) == pytest.approx(right.get(token, 0.0), abs=tolerance)


def test_shapes_and_types(encoder, texts):
    result = encoder.encode(texts, **ALL)
    geometry = encoder.bundle.manifest.geometry
    assert result.dense_vecs.shape == (len(texts), geometry.hidden_size)
    assert result.dense_vecs.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(result.dense_vecs, axis=1), 1, atol=1e-5)
    for rows, count in zip(result.colbert_vecs, result.token_counts, strict=True):
        assert rows.shape == (count - 1, geometry.colbert_dim)
        assert rows.dtype == np.float32
        assert rows.flags.owndata
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    for weights in result.lexical_weights:
        assert all(token.isdecimal() and weight > 0 for token, weight in weights.items())
        assert not {str(i) for i in encoder.tokenizer_info.unused_ids} & weights.keys()


def test_the_result_is_a_mapping_with_three_keys(encoder):
    result = encoder.encode(["a"])
    assert list(result) == list(result.keys()) == ["dense_vecs", "lexical_weights", "colbert_vecs"]
    assert "dense_vecs" in result
    assert "sparse_vecs" not in result
    assert result["lexical_weights"] is result["colbert_vecs"] is result.sparse is None
    assert result["dense_vecs"] is result.dense_vecs
    assert dict(result.items()).keys() == dict(result).keys()
    with pytest.raises(KeyError):
        result["dense"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.truncated = 3  # type: ignore[misc]


def test_lexical_weights_are_json(encoder):
    result = encoder.encode(["some words"], return_sparse=True)
    assert json.loads(json.dumps(result["lexical_weights"])) == result["lexical_weights"]


def test_arrays_and_dicts_hold_the_same_lexical_weights(encoder, texts):
    result = encoder.encode(texts, return_sparse=True)
    assert list(result.sparse) == result.lexical_weights
    assert len(result.sparse) == len(texts)
    assert result.sparse.vocab_size == encoder.vocab_size


def test_one_text_is_unwrapped(encoder):
    one, many = encoder.encode("a text", **ALL), encoder.encode(["a text"], **ALL)
    assert one.dense_vecs.shape == many.dense_vecs.shape[1:]
    assert one.lexical_weights == many.lexical_weights[0]
    assert np.array_equal(one.colbert_vecs, many.colbert_vecs[0])
    assert one.is_single
    assert not many.is_single
    assert len(one.sparse) == 1


def test_no_texts(encoder):
    result = encoder.encode([], **ALL)
    geometry = encoder.bundle.manifest.geometry
    assert result.dense_vecs.shape == (0, geometry.hidden_size)
    assert result.lexical_weights == result.colbert_vecs == []
    assert len(result.sparse) == 0
    assert result.truncated == 0


def test_an_empty_text_is_a_text(encoder):
    result = encoder.encode("", **ALL)
    assert np.isfinite(result.dense_vecs).all()
    assert result.lexical_weights == {}
    assert result.colbert_vecs.shape == (1, encoder.bundle.manifest.geometry.colbert_dim)


WORDS = st.lists(st.sampled_from(["red", "blue", "fox", "日本", "Straße", "42", "\n"]), max_size=30).map(" ".join)


@settings(max_examples=40)
@given(batch=st.lists(WORDS, min_size=1, max_size=8), budget=st.integers(1, 200), size=st.integers(1, 8))
def test_a_text_alone_and_in_any_batch_is_the_same(encoder, batch, budget, size):
    together = encoder.encode(batch, size, token_budget=budget, **ALL)
    for i, text in enumerate(batch):
        close(together, encoder.encode([text], **ALL), i, 0)


@settings(max_examples=20)
@given(order=st.permutations(range(8)))
def test_the_order_of_the_input_is_kept(encoder, texts, order):
    straight = encoder.encode(texts, **ALL)
    shuffled = encoder.encode([texts[i] for i in order], **ALL)
    for place, i in enumerate(order):
        close(shuffled, straight, place, i)
    assert shuffled.token_counts.tolist() == [straight.token_counts[i] for i in order]


def test_one_and_two_threads_agree(tiny_bundle, texts, encoder):
    with M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=2) as two:
        for i in range(len(texts)):
            close(two.encode(texts, **ALL), encoder.encode(texts, **ALL), i, i)


def test_the_model_knows_what_belongs_together(mini_bundle):
    queries = ["Wie hoch ist der Eiffelturm?", "What do bees make?"]
    passages = ["The Eiffel Tower in Paris is 330 metres tall.", "Honey bees collect nectar and turn it into honey."]
    with M3Encoder.open(mini_bundle, threads=1) as encoder:
        scores = encoder.encode(queries)["dense_vecs"] @ encoder.encode(passages)["dense_vecs"].T
    assert scores.argmax(axis=1).tolist() == [0, 1]


def test_long_texts_are_cut_and_counted(encoder):
    long, short = "many words in a row " * 30, "few"
    result = encoder.encode([long, short, long], max_length=16, **ALL)
    assert result.truncated == 2
    assert result.token_counts.tolist()[::2] == [16, 16]
    assert [len(rows) for rows in result.colbert_vecs][::2] == [15, 15]


def test_long_texts_can_be_refused(encoder):
    with pytest.raises(TextTooLongError, match="text 1 has"):
        encoder.encode(["few", "many words in a row " * 30], max_length=16, on_truncate="error")


def test_the_default_length_is_512_or_what_the_model_takes(encoder):
    long = encoder.encode("word " * 2000)
    assert long.token_counts.tolist() == [min(512, encoder.max_tokens)]
    assert encoder.encode("word " * 2000, max_length=encoder.max_tokens).token_counts.tolist() == [encoder.max_tokens]


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("max_length", 0, "max_length must be at least 3, got 0"),
        ("max_length", 2, "max_length must be at least 3, got 2"),
        ("max_length", -1, "at least 3"),
        ("max_length", 10_000_000, "the model takes at most"),
        ("max_length", 7.5, "must be an integer, got float"),
        ("max_length", True, "must be an integer, got bool"),
        ("batch_size", 0, "batch_size must be at least 1"),
        ("token_budget", 0, "token_budget must be at least 1"),
        ("on_truncate", "explode", "on_truncate must be one of truncate, error, got"),
        ("colbert_dtype", "int2", "colbert_dtype must be one of float32, float16, int8, int4, binary, got 'int2'"),
        ("colbert_dim", 0, "colbert_dim must be a number from 1 to"),
        ("colbert_dim", 100_000, "colbert_dim must be a number from 1 to"),
    ],
)
def test_arguments_out_of_range(encoder, argument, value, message):
    with pytest.raises(InputError, match=message):
        encoder.encode(["a"], **{argument: value}, return_colbert_vecs=True)


@pytest.mark.parametrize(("argument", "value"), [("colbert_dtype", "int8"), ("colbert_dim", 4), ("colbert_pool", 2)])
def test_what_is_of_colbert_vectors_comes_with_them(encoder, argument, value):
    ids = encoder.tokenizer.encode_batch(["a"], 8).ids
    for encode in (encoder.encode, encoder.encode_queries, encoder.encode_corpus):
        with pytest.raises(InputError, match=f"{argument} is of ColBERT vectors, which are not asked for"):
            encode(["a"], **{argument: value})
    with pytest.raises(InputError, match=f"{argument} is of ColBERT vectors"):
        encoder.encode_ids(ids, {Head.DENSE}, **{argument: value})


def test_three_tokens_are_enough(encoder):
    assert encoder.encode("one two three", max_length=3).token_counts.tolist() == [3]


def test_numpy_integers_are_integers(encoder):
    assert encoder.encode("one two three", max_length=np.int32(5)).token_counts.tolist() == [5]


def test_no_head_at_all(encoder):
    with pytest.raises(InputError, match="no head is asked for"):
        encoder.encode(["a"], return_dense=False)


def test_a_head_that_the_bundle_lacks(encoder):
    manifest = dataclasses.replace(encoder.bundle.manifest, heads=(Head.DENSE,))
    with pytest.raises(HeadError, match="no sparse head; it has: dense"):
        encode_options(manifest, {Head.DENSE, Head.SPARSE}, batch_size=1, token_budget=1)


@pytest.mark.parametrize("items", [["a", None], ["a", 1], ["a", ["b"]], ["a", "\ud800"]])
def test_a_bad_item_is_named(encoder, items):
    with pytest.raises(InputError, match="text 1"):
        encoder.encode(items)


@pytest.mark.parametrize("sentences", [None, 5, b"bytes", "\udfff"])
def test_input_that_is_no_text(encoder, sentences):
    with pytest.raises(InputError):
        encoder.encode(sentences)


def test_a_text_of_ten_megabytes(encoder):
    result = encoder.encode(["with blanks " * 833_333, "short"], max_length=64)
    assert result.truncated == 1
    assert np.isfinite(result.dense_vecs).all()


def test_float16_colbert_rows(encoder, texts):
    half = encoder.encode(texts, return_colbert_vecs=True, colbert_dtype="float16").colbert_vecs
    full = encoder.encode(texts, return_colbert_vecs=True).colbert_vecs
    for a, b in zip(half, full, strict=True):
        assert a.dtype == np.float16
        assert a.flags.owndata
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_queries_and_passages_are_encoded_alike(encoder):
    assert np.array_equal(encoder.encode_queries(["a b"])["dense_vecs"], encoder.encode_corpus(["a b"])["dense_vecs"])


@pytest.mark.parametrize("method", ["encode", "encode_queries", "encode_corpus"])
def test_queries_and_passages_take_the_options_of_encode(encoder, method):
    encode, long = getattr(encoder, method), "many words in a row"
    half = encode([long], 1, 16, False, False, True, token_budget=1, colbert_dtype="float16")
    assert half["colbert_vecs"][0].dtype == np.float16
    with pytest.raises(TextTooLongError, match="text 0 has"):
        encode([long], max_length=4, on_truncate="error")


def test_from_bundle_is_what_open_does(tiny_bundle, encoder):
    bundle = Bundle.open(tiny_bundle)
    with M3Encoder.from_bundle(bundle, bundle.variant("onnx-fp32"), 1) as other:
        assert other.bundle is bundle
        assert np.array_equal(other.encode("a b")["dense_vecs"], encoder.encode("a b")["dense_vecs"])


@pytest.mark.parametrize("threads", [0, -1, 1.5, 10**6])
def test_unusable_thread_counts(tiny_bundle, threads):
    with pytest.raises(InputError, match="threads must be"):
        M3Encoder.open(tiny_bundle, threads=threads)


def test_a_closed_encoder_says_so(tiny_bundle):
    with M3Encoder.open(tiny_bundle, variant="onnx-fp32") as encoder:
        pass
    encoder.close()  # once more does no harm
    with pytest.raises(EngineError, match="closed"):
        encoder.encode(["a"])
    with pytest.raises(EngineError, match="closed"):
        encoder.compute_score(("a", "b"))


def test_what_an_encoder_says_about_itself(encoder):
    assert encoder.variant.name == "onnx-fp32"
    assert encoder.space_id == encoder.bundle.manifest.space_id
    assert encoder.vocab_size == encoder.bundle.manifest.geometry.vocab_size
    assert encoder.tokenizer_info is encoder.bundle.manifest.tokenizer


def test_words_for_ids(encoder):
    weights = encoder.encode(["fox", "a fox"], return_sparse=True).lexical_weights
    words = encoder.convert_id_to_token(weights)
    assert len(words) == 2
    assert [sum(w.values()) <= sum(i.values()) + 1e-6 for w, i in zip(words, weights, strict=True)] == [True, True]
    assert isinstance(encoder.convert_id_to_token(weights[0]), dict)
    assert isinstance(encoder.convert_id_to_token(weights[:1]), list)


def test_words_for_ids_that_look_the_same_keep_the_largest(encoder):
    plain = Tokenizer.from_file(str(encoder.bundle.file("tokenizer.json")))
    start, inside = (plain.token_to_id(piece) for piece in ("▁a", "a"))
    assert start is not None
    assert inside is not None
    assert encoder.convert_id_to_token({str(start): 0.5, str(inside): 0.25}) == {"a": 0.5}


@pytest.mark.parametrize("weights", [{"fox": 1.0}, {"-1": 1.0}, {"99999999": 1.0}, "7", 7])
def test_words_for_what_is_no_id(encoder, weights):
    with pytest.raises(InputError):
        encoder.convert_id_to_token(weights)
