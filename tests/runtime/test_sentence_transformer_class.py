"""`SentenceTransformer` over a bundle; tests/environment holds it against sentence-transformers itself."""

import json
import logging
import pickle
import sys

import numpy as np
import pytest
from test_prompts import with_prompts

from m3_runtime import InputError
from m3_runtime.compat.sentence_transformers import SentenceTransformer
from m3_runtime.ignored import IgnoredArgumentWarning

OPENED = {"variant": "onnx-fp32", "threads": 1}


@pytest.fixture(scope="module")
def model(tiny_bundle):
    opened = SentenceTransformer(str(tiny_bundle), device="cpu", **OPENED)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def prompting(tiny_bundle, tmp_path_factory):
    """A bundle with prompts, and one more of the caller's."""
    data = {"prompts": {"query": "find: ", "passage": "text: "}, "default_prompt_name": "passage"}
    folder = with_prompts(tiny_bundle, tmp_path_factory.mktemp("prompts") / "bundle", json.dumps(data))
    opened = SentenceTransformer(folder, prompts={"title": "title: "}, **OPENED)
    yield opened
    opened.close()


def same(found, expected):
    np.testing.assert_array_equal(found, expected)
    return True


def test_its_readme(model, encoder):
    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    embeddings = model.encode(sentences)
    assert embeddings.dtype == np.float32
    assert same(embeddings, encoder.encode(sentences).dense_vecs)
    similarities = model.similarity(embeddings, embeddings)
    np.testing.assert_allclose(similarities, embeddings @ embeddings.T, atol=1e-6)
    assert "torch" not in sys.modules or not isinstance(similarities, sys.modules["torch"].Tensor)


def test_one_text_gives_one_vector_and_a_list_gives_rows(model, encoder):
    expected = encoder.encode(["one", "two words"]).dense_vecs
    assert same(model.encode("one"), expected[0])
    assert same(model.encode(["one"]), expected[:1])
    assert same(model.encode(("one", "two words"), batch_size=1), expected)
    assert same(model.encode(inputs=np.array(["one", "two words"])), expected)
    assert model.encode([]).shape == (0, 64)


def test_prompts_go_before_texts(prompting, encoder):
    assert prompting.prompts == {"query": "find: ", "document": "", "passage": "text: ", "title": "title: "}
    vectors = {text: encoder.encode(text).dense_vecs for text in ("a", "find: a", "text: a", "title: a", "own a")}
    assert same(prompting.encode("a"), vectors["text: a"])  # the default
    assert same(prompting.encode("a", prompt_name="query"), vectors["find: a"])
    assert same(prompting.encode("a", "title"), vectors["title: a"])
    assert same(prompting.encode("a", prompt="own "), vectors["own a"])
    assert same(prompting.encode("a", prompt_name="query", prompt=""), vectors["a"])
    assert same(prompting.encode_query("a"), vectors["find: a"])
    assert same(prompting.encode_query("a", prompt_name="title"), vectors["title: a"])
    assert same(prompting.encode_document("a"), vectors["a"])  # "document" comes first, and is empty
    del prompting.prompts["document"]
    assert same(prompting.encode_document(["a"], batch_size=1)[0], vectors["text: a"])


def test_prompts_that_are_not_there_are_named(model, tiny_bundle):
    for call in (model.encode, model.encode_query, model.encode_document):
        with pytest.raises(InputError, match="there is no prompt 'title'; there are query, document"):
            call("a", prompt_name="title")
    with pytest.raises(InputError, match="there is no prompt 'title'"):
        SentenceTransformer(tiny_bundle, default_prompt_name="title", **OPENED)


def test_dimensions_are_cut_before_normalizing(model, tiny_bundle):
    whole = model.encode(["one", "two words"])
    cut = whole[:, :16]
    assert same(model.encode(["one", "two words"], truncate_dim=16), cut)
    unit = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    np.testing.assert_allclose(
        model.encode(["one", "two words"], truncate_dim=16, normalize_embeddings=True), unit, rtol=1e-6
    )
    always = SentenceTransformer(tiny_bundle, truncate_dim=16, **OPENED)
    assert same(always.encode(["one", "two words"]), cut)
    assert always.get_sentence_embedding_dimension() == always.get_embedding_dimension() == 16
    assert model.get_sentence_embedding_dimension() == 64
    always.close()


def test_packed_vectors(model):
    texts = [f"text number {n}" for n in range(20)]
    vectors = model.encode(texts)
    signs = model.encode(texts, precision="ubinary")
    assert same(np.unpackbits(signs, axis=1), vectors > 0)
    assert same(model.encode(texts, precision="binary").astype(int), signs.astype(int) - 128)
    steps = model.encode(texts, precision="uint8")
    assert steps.dtype == np.uint8
    assert steps.min(axis=0).max() == 0
    assert steps.max(axis=0).min() >= 254  # 255, or just below it
    assert same(model.encode(texts, precision="int8").astype(int), steps.astype(int) - 128)
    least, most = vectors.min(axis=0), vectors.max(axis=0)
    np.testing.assert_allclose(least + steps / 255 * (most - least), vectors, atol=(most - least).max() / 255)
    assert model.encode("one", precision="ubinary").shape == (8,)
    assert model.encode([], precision="int8").shape == (0, 64)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)),
        ("dot", lambda a, b: a @ b),
        ("euclidean", lambda a, b: -np.linalg.norm(a - b)),
        ("manhattan", lambda a, b: -np.abs(a - b).sum()),
    ],
)
def test_similarities(tiny_bundle, name, expected):
    model = SentenceTransformer(tiny_bundle, similarity_fn_name=name, **OPENED)
    one, two = np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32)
    found = model.similarity(one, two[:2])
    np.testing.assert_allclose(found, [[expected(a, b) for b in two[:2]] for a in one], rtol=1e-4, atol=1e-5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(model.similarity_pairwise(one, two), np.diag(model.similarity(one, two)), rtol=1e-5)
    assert model.similarity(one[0], two[0]).shape == (1, 1)
    assert model.similarity(one[:0], two).shape == (0, 3)
    with pytest.raises(InputError, match="as many vectors"):
        model.similarity_pairwise(one, two[:2])
    model.close()


def test_long_texts_are_cut_and_that_is_logged(model, encoder, caplog):
    assert model.max_seq_length == model.get_max_seq_length() == 512
    long = "word " * 600
    with caplog.at_level(logging.WARNING, "m3_runtime"):
        assert same(model.encode([long, "a"])[0], encoder.encode(long, max_length=512).dense_vecs)
        assert "1 of 2 texts had more tokens than max_seq_length, 512" in caplog.text
        model.max_seq_length = 4
        assert same(model.encode(long), encoder.encode("word word").dense_vecs)
        assert model.tokenize(["word", long])["input_ids"].shape == (2, 4)
    model.max_seq_length = 512
    with pytest.raises(InputError, match="max_seq_length is 513"):
        model.max_seq_length = 513


def test_tokens(model):
    found = model.tokenize(["one two", "one"])
    ids, mask = found["input_ids"], found["attention_mask"]
    assert ids.shape == mask.shape
    info = model.tokenizer.info
    assert [ids[0, 0], ids[0, -1], ids[1, -1]] == [info.cls_id, info.eos_id, info.pad_id]
    assert mask.sum(axis=1).tolist() == [row.size for row in model.tokenizer.encode_batch(["one two", "one"], 512).ids]
    assert ((ids == info.pad_id) == (mask == 0)).all()


def test_a_bar_changes_nothing(model, capsys):
    texts = [f"text {n}" for n in range(20)]
    assert same(model.encode(texts, batch_size=1, show_progress_bar=True), model.encode(texts))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "asked",
    [
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"output_value": "token_embeddings"},
        {"output_value": None},
        {"pool": {"processes": []}},
        {"chunk_size": 10},
        {"precision": "float16"},
        {"truncate_dim": 0},
        {"batch_size": 0},
        {"device": 1.5},
        {"prompt": 7},
    ],
)
def test_what_cannot_be_had_is_named(model, asked):
    (name,) = asked
    for call in (model.encode, model.encode_query, model.encode_document):
        with pytest.raises(InputError, match=name):
            call(["a"], **asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"modules": ["one"]},
        {"model_kwargs": {"torch_dtype": "float16"}},
        {"tokenizer_kwargs": {"padding_side": "left"}},
        {"config_kwargs": {"a": 1}},
        {"backend": "tensorrt"},
        {"similarity_fn_name": "jaccard"},
        {"revision": "other"},
        {"no_such_argument": 1},
    ],
)
def test_a_constructor_that_asks_for_what_is_not_here(tiny_bundle, asked):
    (name,) = asked
    with pytest.raises(InputError, match=name):
        SentenceTransformer(tiny_bundle, **asked)


def test_what_means_nothing_here_is_accepted(tiny_bundle):
    model = SentenceTransformer(
        tiny_bundle, backend="onnx", cache_folder="/nowhere", trust_remote_code=True, local_files_only=True,
        token=False, model_kwargs={}, modules=None, tokenizer_kwargs=None, revision=None,
    )  # fmt: skip
    assert model.encoder.variant.engine == "onnxruntime"
    assert model.eval().to("cpu") is model
    assert model.device == "cpu"
    model.close()


def test_another_device_gives_a_warning(tiny_bundle, model):
    with pytest.warns(IgnoredArgumentWarning, match="device='cuda'"):
        SentenceTransformer(tiny_bundle, device="cuda", **OPENED).close()
    with pytest.warns(IgnoredArgumentWarning, match="computes on the CPU"):
        model.encode("a", device=["cuda:0", "cuda:1"])
    with pytest.warns(IgnoredArgumentWarning, match="mps"):
        model.to("mps")


@pytest.mark.parametrize("wrong", [None, 7, b"bytes", {"a": "b"}, ["a", None], "half \ud800"])
def test_what_is_no_text_is_named(model, wrong):
    with pytest.raises(InputError, match="text"):
        model.encode(wrong)


def test_it_pickles(prompting):
    other = pickle.loads(pickle.dumps(prompting))
    assert other.prompts == prompting.prompts
    assert same(other.encode("a"), prompting.encode("a"))
    other.close()
