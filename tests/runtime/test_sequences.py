"""What may stand where a list of texts or pairs is wanted, in every class that takes one."""

import io
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from m3_runtime import InputError
from m3_runtime.compat.fastembed import SparseTextEmbedding, TextEmbedding
from m3_runtime.compat.sentence_transformers import SentenceTransformer
from m3_runtime.flag import BGEM3FlagModel, FlagModel
from m3_runtime.integrations.adapters import PlainVectors

TEXTS = ["Bees dance.", "小熊猫吃竹子。", ""]

COLUMNS = {
    "tuple": tuple(TEXTS),
    "generator": (text for text in TEXTS),
    "keys of a dict": dict.fromkeys(TEXTS).keys(),
    "values of a dict": dict(enumerate(TEXTS)).values(),
    "numpy str": np.array(TEXTS),
    "numpy objects": np.array(TEXTS, dtype=object),
    "numpy StringDType": np.array(TEXTS, dtype=np.dtypes.StringDType()),
    "pandas": pd.Series(TEXTS),
    "pandas, another index": pd.Series(TEXTS, index=[7, 3, 5]),
    "pandas arrow strings": pd.Series(TEXTS, dtype="string[pyarrow]"),
    "pandas categories": pd.Series(TEXTS, dtype="category"),
    "pandas index": pd.Index(TEXTS),
    "arrow": pa.array(TEXTS),
    "arrow large": pa.array(TEXTS, pa.large_string()),
    "arrow view": pa.array(TEXTS, pa.string_view()),
    "arrow dictionary": pa.array(TEXTS).dictionary_encode(),
    "arrow chunks": pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
}

UNKNOWN = {
    "bytes": (b"Bees dance.", "bytes; decode"),
    "bytearray": (bytearray(b"Bees"), "bytearray; decode"),
    "mapping": ({"text": "Bees"}, "pass its values"),
    "pandas table": (pd.DataFrame({"text": TEXTS}), r"one column of the table, table\[.text.\]"),
    "arrow table": (pa.table({"text": TEXTS}), "one column of the table"),
    "arrow batch": (pa.record_batch({"text": TEXTS}), "one column of the table"),
    "set": (set(TEXTS), "no order"),
    "frozenset": (frozenset(TEXTS), "no order"),
    "0-d array": (np.array("Bees"), r"array.item\(\)"),
    "file": (io.StringIO("Bees\nHoney\n"), "read it first"),
    "number": (5, "got int"),
    "nothing": (None, "got NoneType"),
    "arrow scalar": (pa.scalar("Bees"), "got StringScalar"),
    "2-D array": (np.array([TEXTS]), "text 0 must be a str, got ndarray of shape"),
    "array of bytes": (np.array([b"Bees"]), "text 0 must be a str, got bytes_"),
    "missing value": (pd.Series(["Bees", None]), "text 1 must be a str"),
    "missing in arrow": (pa.array(["Bees", None]), "text 1 must be a str, got NoneType"),
    "rows": (pa.table({"text": TEXTS}).to_pylist(), "text 0 must be a str, got dict"),
}


@pytest.fixture(scope="module")
def classes(tiny_bundle):
    opened = {
        "FlagModel": FlagModel(tiny_bundle, query_instruction_for_retrieval="find: ", variant="onnx-fp32", threads=1),
        "ST": SentenceTransformer(str(tiny_bundle), variant="onnx-fp32", threads=1),
        "fastembed": TextEmbedding(tiny_bundle, variant="onnx-fp32", threads=1),
    }
    vectors = PlainVectors(tiny_bundle, variant="onnx-fp32", threads=1)
    yield {
        "FlagModel": opened["FlagModel"].encode,
        "with an instruction": opened["FlagModel"].encode_queries,
        "ST": opened["ST"].encode,
        "fastembed": lambda texts: np.array(list(opened["fastembed"].embed(texts))),
        "adapters, dense": lambda texts: np.array(vectors.dense(texts)),
        "adapters, sparse": vectors.lexical_by_id,
    }
    for each in opened.values():
        each.close()


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_is_a_list(encoder, kind):
    found, expected = encoder.encode(COLUMNS[kind], return_sparse=True), encoder.encode(TEXTS, return_sparse=True)
    np.testing.assert_array_equal(found.dense_vecs, expected.dense_vecs)
    assert found.lexical_weights == expected.lexical_weights


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_has_no_one_meaning_is_refused(encoder, kind):
    given, reason = UNKNOWN[kind]
    with pytest.raises(InputError, match=reason):
        encoder.encode(given)


def test_every_class_takes_columns_and_refuses_the_rest(classes):
    column = pa.chunked_array([TEXTS])
    refused = {name: pair for name, pair in UNKNOWN.items() if name != "file"}  # read once, it would be at its end
    for call in classes.values():
        np.testing.assert_equal(call(column), call(TEXTS))
        for given, reason in refused.values():
            with pytest.raises(InputError, match=reason):
                call(given)


def test_an_adapters_list_is_no_single_text(classes):
    for name in ("adapters, dense", "adapters, sparse"):
        with pytest.raises(InputError, match="put it into a list"):
            classes[name]("Bees dance.")


def test_an_iterator_that_fails_says_how_far_it_came_and_nothing_is_lost(encoder, classes):
    def failing():
        yield from TEXTS[:2]
        raise ConnectionError("the cursor is gone")

    for call in (encoder.encode, *classes.values()):
        with pytest.raises(ConnectionError, match="the cursor is gone") as caught:
            call(failing())
        assert caught.value.__notes__ == ["raised by what was handed over, after 2 items"]
    assert len(encoder.encode(TEXTS).dense_vecs) == 3


PAIRS = [("bees", "Bees dance."), ("熊猫", "小熊猫吃竹子。")]


@pytest.mark.parametrize(
    "given",
    [
        np.array(PAIRS),
        np.array(PAIRS, dtype=object),
        pd.DataFrame(PAIRS).to_numpy(),
        pd.Series(PAIRS),
        pa.array(PAIRS, pa.list_(pa.string())),
        zip(*zip(*PAIRS, strict=True), strict=True),
    ],
    ids=["str", "objects", "values of a table", "series", "arrow lists", "zip"],
)
def test_arrays_of_pairs_are_pairs(encoder, given):
    assert encoder.compute_score(given) == encoder.compute_score(PAIRS)


def test_an_array_of_two_texts_is_one_pair(encoder):
    assert encoder.compute_score(np.array(PAIRS[0])) == encoder.compute_score(PAIRS[0])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (pd.DataFrame(PAIRS, columns=["q", "p"]), "one column of the table"),
        ({"q": "bees", "p": "Bees dance."}, "pass its values"),
        ({PAIRS[0]}, "no order"),
        ([{"bees", "Bees dance."}], "pair 0 must be .query, passage., got set"),
        ([{"query": "bees", "passage": "Bees"}], "pair 0 must be .query, passage., got dict"),
        (np.array([["a", "b", "c"]]), "pair 0 must be .query, passage., got ndarray of 3"),
        (np.array("bees"), "array.item"),
        ([("bees", np.array("Bees"))], "the passage of pair 0 must be a str, got ndarray"),
    ],
)
def test_what_is_no_list_of_pairs(encoder, tiny_bundle, given, reason):
    with pytest.raises(InputError, match=reason):
        encoder.compute_score(given)


def test_pairs_in_the_drop_in(tiny_bundle, encoder):
    model = BGEM3FlagModel(tiny_bundle, variant="onnx-fp32", threads=1)
    assert model.compute_score(np.array(PAIRS)) == encoder.compute_score(PAIRS)
    with pytest.raises(InputError, match="one column"):
        model.compute_score(pd.DataFrame(PAIRS))
    model.close()


def test_weights_of_any_size_combine_and_those_that_cancel_are_refused(encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (1e308, 1e-308):
            found = encoder.compute_score(PAIRS, weights_for_different_modes=[size] * 3)
            assert found["colbert+sparse+dense"] == pytest.approx(encoder.compute_score(PAIRS)["colbert+sparse+dense"])
    for weights in ([1e308, -1e308, 1e-308], [0, 0, 0], [float("nan"), 1, 1], "111", {1, 2, 3}, [1, 2]):
        with pytest.raises(InputError, match="weights"):
            encoder.compute_score(PAIRS, weights_for_different_modes=weights)


def test_sparse_text_embedding_takes_a_column(tiny_bundle, encoder):
    with_column = SparseTextEmbedding(tiny_bundle, variant="onnx-fp32", threads=1)
    found = [vector.as_dict() for vector in with_column.embed(pd.Series(TEXTS))]
    assert found == [
        {int(k): v for k, v in w.items()} for w in encoder.encode(TEXTS, return_sparse=True).lexical_weights
    ]
    with_column.close()
