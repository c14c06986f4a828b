import warnings

import numpy as np
import pytest

from m3_runtime import InputError
from m3_runtime.flag import BGEM3FlagModel, FlagAutoModel, FlagModel
from m3_runtime.ignored import IgnoredArgumentWarning

ALL = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}


@pytest.fixture(scope="module")
def model(tiny_bundle):
    opened = BGEM3FlagModel(str(tiny_bundle), use_fp16=False, devices="cpu", variant="onnx-fp32")
    yield opened
    opened.close()


def test_the_readme_of_bge_m3(tiny_bundle):
    # BGE-M3's README, with only the path changed.
    model = BGEM3FlagModel(tiny_bundle, use_fp16=True)
    sentences_1 = ["What is BGE M3?", "Defination of BM25"]
    sentences_2 = ["BGE M3 is an embedding model", "BM25 is a bag-of-words retrieval function"]
    embeddings_1 = model.encode(sentences_1, batch_size=12, max_length=500)["dense_vecs"]
    embeddings_2 = model.encode(sentences_2)["dense_vecs"]
    assert (embeddings_1 @ embeddings_2.T).shape == (2, 2)

    output_1 = model.encode(sentences_1, return_dense=True, return_sparse=True, return_colbert_vecs=False)
    output_2 = model.encode(sentences_2, return_dense=True, return_sparse=True, return_colbert_vecs=False)
    assert len(model.convert_id_to_token(output_1["lexical_weights"])) == 2
    assert model.compute_lexical_matching_score(output_1["lexical_weights"][0], output_2["lexical_weights"][0]) >= 0

    output_1 = model.encode(sentences_1, **ALL)
    output_2 = model.encode(sentences_2, **ALL)
    assert model.colbert_score(output_1["colbert_vecs"][0], output_2["colbert_vecs"][0]) > -1

    pairs = [[i, j] for i in sentences_1 for j in sentences_2]
    scores = model.compute_score(pairs, max_passage_length=128, weights_for_different_modes=[0.4, 0.2, 0.4])
    assert list(scores) == ["colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense"]
    assert all(len(values) == 4 for values in scores.values())
    model.close()


def test_defaults_are_flagembeddings(model):
    assert model.batch_size == 256
    assert model.query_max_length == model.passage_max_length == 512
    assert (model.return_dense, model.return_sparse, model.return_colbert_vecs) == (True, False, False)
    assert model.target_devices == ["cpu"]
    assert model.tokenizer.decode([model.tokenizer.info.eos_id]) == "</s>"
    result = model.encode("a")
    assert result["lexical_weights"] is result["colbert_vecs"] is None


def test_constructor_values_are_the_defaults_of_methods(tiny_bundle):
    model = BGEM3FlagModel(
        tiny_bundle, return_dense=False, return_sparse=True, query_max_length=4, passage_max_length=6
    )
    text = "one two three four five six seven"
    assert model.encode(text)["dense_vecs"] is None
    assert model.encode(text, return_dense=True)["dense_vecs"] is not None
    assert model.encode_queries([text]).token_counts.tolist() == [4]
    assert model.encode_corpus([text]).token_counts.tolist() == model.encode([text]).token_counts.tolist() == [6]
    model.close()


def test_instructions_go_before_texts(tiny_bundle):
    model = BGEM3FlagModel(
        tiny_bundle,
        query_instruction_for_retrieval="find",
        query_instruction_format=r"{}:\n{}",
        passage_instruction_for_retrieval="keep",
        variant="onnx-fp32",
    )
    expected = model.encode(["find:\na {b}"])["dense_vecs"]
    assert np.array_equal(model.encode_queries(["a {b}"])["dense_vecs"], expected)
    assert np.array_equal(model.encode_queries("a {b}")["dense_vecs"], expected[0])
    assert np.array_equal(model.encode_corpus(["a"])["dense_vecs"], model.encode(["keepa"])["dense_vecs"])
    with pytest.raises(InputError, match="text 1 must be a str, got NoneType"):
        model.encode_queries(["a", None])
    model.close()


def test_truncate_dim_cuts_before_normalizing(tiny_bundle, model):
    cut = BGEM3FlagModel(tiny_bundle, truncate_dim=16, variant="onnx-fp32")
    for texts in (["one", "two words"], "single"):
        whole, got = model.encode(texts, **ALL), cut.encode(texts, **ALL)
        dense = whole["dense_vecs"][..., :16]
        expected = dense / np.linalg.norm(dense, axis=-1, keepdims=True)
        np.testing.assert_allclose(got["dense_vecs"], expected, atol=1e-6)
        assert got["lexical_weights"] == whole["lexical_weights"]
        rows = got["colbert_vecs"] if isinstance(texts, str) else got["colbert_vecs"][1]
        assert rows.shape[1] == 16
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert cut.compute_score(("a", "b")) == model.compute_score(("a", "b"))
    cut.close()


@pytest.mark.parametrize("devices", [None, "cpu", ["cpu"], ["cpu", "cpu"]])
def test_the_cpu_is_a_device(tiny_bundle, devices):
    opening = {"variant": "onnx-fp32", "threads": 1}
    BGEM3FlagModel(tiny_bundle, devices=devices, **opening).close()
    BGEM3FlagModel(tiny_bundle, device=devices, **opening).close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": []}, r"devices must be a device such as 'cpu' or a list of them, got \[\]"),
        ({"devices": 1.5}, "devices must be a device"),
        ({"device": ["cpu", None, True]}, "devices must be a device"),
        ({"convert_to_numpy": False}, "convert_to_numpy=False is not possible in this runtime"),
        ({"pooling_method": "mean"}, "pooling_method is 'mean', but the bundle was exported with 'cls'"),
        ({"normalize_embeddings": False}, "normalize_embeddings is False, but"),
        ({"colbert_dim": 7}, "colbert_dim is 7, but"),
        ({"truncate_dim": 0}, "truncate_dim must be 1 to"),
        ({"truncate_dim": 100_000}, "truncate_dim must be 1 to"),
        ({"query_max_length": 2}, "query_max_length must be at least 3"),
        ({"passage_max_length": 100_000}, "passage_max_length is 100000"),
    ],
)
def test_arguments_that_cannot_be(tiny_bundle, arguments, message):
    with pytest.raises(InputError, match=message):
        BGEM3FlagModel(tiny_bundle, **arguments)


def test_arguments_that_mean_nothing_here_are_accepted(tiny_bundle):
    model = BGEM3FlagModel(
        tiny_bundle,
        normalize_embeddings=True,
        pooling_method="cls",
        use_bf16=True,
        trust_remote_code=True,
        cache_dir="/nowhere",
        colbert_dim=24,
    )
    model.stop_self_pool()
    model.close()


@pytest.mark.parametrize("devices", ["cuda:0", 0, ["cpu", "cuda"], [0, 1], "mps"])
def test_another_device_gives_a_warning(tiny_bundle, devices):
    with pytest.warns(IgnoredArgumentWarning, match="this runtime computes on the CPU"):
        model = BGEM3FlagModel(tiny_bundle, devices=devices)
    assert model.target_devices == ["cpu"]
    model.close()


def test_unknown_arguments_are_named_in_a_warning_and_change_nothing(tiny_bundle, model):
    with pytest.warns(
        IgnoredArgumentWarning, match="unknown arguments have no effect: another, no_such_argument"
    ) as seen:
        made = BGEM3FlagModel(tiny_bundle, no_such_argument=1, another=None, variant="onnx-fp32")
    assert seen[0].filename == __file__
    expected = model.encode(["a"])["dense_vecs"]
    for call in (made.encode, made.encode_queries, made.encode_corpus):
        with pytest.warns(IgnoredArgumentWarning, match="padding, return_tensors"):
            found = call(["a"], padding=True, return_tensors="pt")
        assert np.array_equal(found["dense_vecs"], expected)
    with pytest.warns(IgnoredArgumentWarning, match="show_progress"):
        made.compute_score(("a", "b"), show_progress=True)
    made.close()


@pytest.mark.parametrize(
    "asked", [{"add_special_tokens": False}, {"truncation": False}, {"stride": 3}, {"convert_to_numpy": False}]
)
def test_what_would_change_the_answer_is_refused(model, asked):
    (name,) = asked
    for call in (model.encode, model.encode_queries, model.encode_corpus):
        with pytest.raises(InputError, match=f"{name}=.* is not possible"):
            call(["a"], **asked)
    with pytest.raises(InputError, match=f"{name}=.* is not possible"):
        model.compute_score(("a", "b"), **asked)


def test_what_asks_for_nothing_gives_no_warning(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(["a"], convert_to_numpy=True, truncation=True)


def test_the_dense_class_gives_arrays(tiny_bundle, model):
    # FlagEmbedding's README, with only the path changed
    dense = FlagModel(
        tiny_bundle, query_instruction_for_retrieval="find ", use_fp16=True, devices="cpu", variant="onnx-fp32"
    )
    texts = ["one", "two words"]
    expected = model.encode(texts)["dense_vecs"]
    assert np.array_equal(dense.encode(texts), expected)
    assert np.array_equal(dense.encode_corpus(texts, 1, 512, True), expected)
    assert np.array_equal(dense.encode("one"), expected[0])
    assert np.array_equal(dense.encode_queries(texts), model.encode(["find one", "find two words"])["dense_vecs"])
    assert (dense.encode_queries(texts) @ dense.encode_corpus(texts).T).shape == (2, 2)
    assert dense.tokenizer.decode([dense.tokenizer.info.eos_id]) == "</s>"
    with pytest.raises(InputError, match="convert_to_numpy=False is not possible"):
        dense.encode(texts, convert_to_numpy=False)
    with pytest.raises(InputError, match="dense vectors alone"):
        dense.encode(texts, return_dense=False, return_sparse=True)
    dense.stop_self_pool()
    dense.close()


@pytest.mark.parametrize(
    ("model_class", "kind"),
    [(None, BGEM3FlagModel), ("encoder-only-m3", BGEM3FlagModel), ("encoder-only-base", FlagModel)],
)
def test_the_class_that_chooses(tiny_bundle, model_class, kind):
    made = FlagAutoModel.from_finetuned(
        str(tiny_bundle), model_class, use_fp16=False, query_max_length=7, trust_remote_code=None, devices="cpu"
    )
    assert type(made) is kind
    assert (made.m3 if kind is FlagModel else made).query_max_length == 7
    made.close()


def test_the_class_that_chooses_knows_two(tiny_bundle):
    with pytest.raises(InputError, match="model_class must be one of encoder-only-m3, encoder-only-base"):
        FlagAutoModel.from_finetuned(tiny_bundle, "decoder-only-icl")
    with pytest.raises(InputError, match="from_finetuned"):
        FlagAutoModel()
