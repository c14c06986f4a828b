"""Options and budgets: what is read, and what is refused with the value that is wrong."""

from dataclasses import fields, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_export.checkpoint.languages import parse_languages
from m3_export.errors import OptionsError
from m3_export.options import ExportOptions, Target, VariantName, parse_heads, parse_variants
from m3_export.verify.budget import BUDGETS, SCORE_BUDGETS, Budget, Excess, ScoreBudget, check_budget, excesses
from m3_runtime.bundle.manifest import (
    ENCODER_HEADS,
    ColbertParity,
    DegenerateParity,
    DenseParity,
    Head,
    Parity,
    SparseParity,
)


def test_the_defaults_are_the_promised_ones():
    options = ExportOptions()
    assert options == ExportOptions(tuple(VariantName), None, None, None, "balanced")
    assert options.budget_of(is_reranker=False) == Budget(0.9993, 0.998, 0.996, 0.98)
    assert options.budget_of(is_reranker=True) == ScoreBudget(0.05, 0.15, 0.98)
    assert (options.allow_over_budget, options.target) == (False, Target.HERE)
    assert [name.value for name in VariantName] == ["onnx-fp32", "onnx-int8", "openvino-int8"]


def test_variants_come_in_their_own_order():
    assert parse_variants(" openvino-int8, onnx-fp32") == (VariantName.ONNX_FP32, VariantName.OPENVINO_INT8)
    assert parse_variants("onnx-fp32,onnx-int8,openvino-int8") == tuple(VariantName)


@pytest.mark.parametrize("text", ["", " ", ",", "onnx", "ONNX-FP32", "onnx-fp32 onnx-int8"])
def test_variants_that_are_none_are_refused_with_the_names(text: str):
    with pytest.raises(OptionsError, match="onnx-fp32, onnx-int8, openvino-int8"):
        parse_variants(text)


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_variants, "onnx-fp32,onnx-fp32", "names the variant 'onnx-fp32' twice"),
        (parse_variants, "onnx-fp32,", "names no variant before, between or after its commas"),
        (parse_variants, "ONNX-FP32", "unknown variant 'ONNX-FP32'.*, in lower case"),
        (parse_heads, "dense,dense", "names the head 'dense' twice"),
        (parse_languages, "zh,,en", "names no language before, between or after its commas"),
        (parse_languages, "en,en", "names the language 'en' twice"),
        (parse_languages, "ZH,En", "the language 'ZH' is not known.*; write it 'zh'"),
        (parse_languages, "zh-hant", "write it 'zh-Hant'"),
    ],
)
def test_words_of_a_list_come_once_in_their_own_letters(parse, text: str, message: str):
    with pytest.raises(OptionsError, match=message):
        parse(text)


def test_heads_are_dense_alone_or_all():
    assert parse_heads("dense") == (Head.DENSE,)
    assert parse_heads("colbert, dense,sparse") == ENCODER_HEADS
    for text in ("", "sparse", "dense,sparse", "sparse,colbert", "bm25"):
        with pytest.raises(OptionsError):
            parse_heads(text)


# Budgets


def test_what_a_budget_does_not_name_keeps_its_default():
    assert Budget.parse("") == Budget()
    assert Budget.parse(" dense_min = 0.5 , sparse_jaccard=0,") == Budget(dense_min=0.5, sparse_jaccard=0.0)
    assert Budget.parse("colbert_p5=-1") == Budget(colbert_p5=-1.0)
    assert Budget.parse("dense_mean=9.99e-1") == Budget(dense_mean=0.999)


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_a_budget_survives_its_own_text(values: list[float]):
    budget = Budget(*values)
    assert Budget.parse(budget.to_text()) == budget


@pytest.mark.parametrize("text", ["dense=0.9", "=0.9", "DENSE_MIN=0.9", "strict,dense=0.9"])
def test_unknown_budget_entries_are_refused_with_the_known_ones(text: str):
    with pytest.raises(OptionsError, match="it has: dense_mean, dense_min, colbert_p5, sparse_jaccard"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["0.9", "dense_mean:0.9", "Strict", "dense_mean=0.9,strict"])
def test_unknown_budget_names_are_refused(text: str):
    with pytest.raises(OptionsError, match=r"there is no budget|has no entry 'strict'"):
        Budget.parse(text)


def test_budgets_by_name_and_changes_to_them():
    assert BUDGETS["balanced"] == Budget() == Budget.parse("balanced")
    assert Budget.parse("strict") == Budget(0.9998, 0.9995, 0.999, 0.99, 0.001)
    assert Budget.parse("fast , dense_min=0.9") == Budget(0.998, 0.9, 0.99, 0.96, 0.01)
    # how many degenerate texts may be below hangs on what they are below of, which differs
    names = [f.name for f in fields(Budget) if f.name != "degenerate_share"]
    figures = [[getattr(BUDGETS[budget], name) for name in names] for budget in ("strict", "balanced", "fast")]
    for stricter, looser in pairwise(figures):
        assert all(a > b for a, b in zip(stricter, looser, strict=True))


def test_a_budget_is_of_an_encoder_or_of_a_reranker():
    of_reranker, of_encoder = ExportOptions(budget="score_p99=0.1"), ExportOptions(budget=Budget(dense_min=0.9))
    assert of_reranker.budget_of(is_reranker=True) == ScoreBudget(score_p99=0.1)
    with pytest.raises(OptionsError, match="the budget has no entry 'score_p99'; it has: dense_mean"):
        of_reranker.budget_of(is_reranker=False)
    assert of_encoder.budget_of(is_reranker=False) == Budget(dense_min=0.9)
    with pytest.raises(OptionsError, match="of a reranker has no entry 'dense_mean'; it has: score_p99, score_max"):
        of_encoder.budget_of(is_reranker=True)


@pytest.mark.parametrize("text", ["", "strict", "strict,dense_min=0.9", "top1=0.5", "fast, score_max = 0.5"])
def test_what_is_a_budget_of_either_kind_waits_for_the_checkpoint(text: str):
    assert check_budget(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mild", "there is no budget 'mild'"),
        ("score_p99=2", "score_p99: expected a number between 0 and 1"),
        ("top1=-0.5", "top1: expected a number between 0 and 1"),
        ("dense_min=2", "dense_min: expected a number between -1 and 1"),
        ("dense_min=0.9,top1=0.9", "the budget of a reranker has no entry 'dense_min'"),
    ],
)
def test_what_is_no_budget_of_either_kind_is_refused_at_once(text: str, said: str):
    with pytest.raises(OptionsError, match=said):
        check_budget(text)


def test_budgets_of_rerankers_by_name():
    for stricter, looser in pairwise(SCORE_BUDGETS[name] for name in ("strict", "balanced", "fast")):
        assert stricter.score_p99 < looser.score_p99
        assert stricter.score_max < looser.score_max
        assert stricter.top1 > looser.top1
        assert ScoreBudget.parse(looser.to_text()) == looser


@pytest.mark.parametrize("value", ["", "high", "nan", "inf", "1.0001", "-1.5", "99.9%", "0,9"])
def test_budget_values_that_are_no_cosine_are_refused(value: str):
    with pytest.raises(OptionsError, match=r"dense_min: expected a number between -1 and 1|no entry '9'"):
        Budget.parse(f"dense_min={value}")


PARITY = Parity(
    texts=3,
    tokens=30,
    probe_sha256="0" * 64,
    measured_on="paper",
    dense=DenseParity(cosine_mean=0.9993, cosine_min=0.998, max_abs=1e-5),
    sparse=SparseParity(0.98, 0.5, 1.0, 1.0, max_abs=1e-5),
    colbert=ColbertParity(0.99, cosine_p5=0.996, cosine_min=0.9, max_abs=1e-4),
    batch_invariance_min=1.0,
    padded_dense_min=1.0,
)


def worse(head: str, figure: str, value: float) -> Parity:
    return replace(PARITY, **{head: replace(getattr(PARITY, head), **{figure: value})})


def test_exactly_on_budget_is_within_it():
    assert excesses(PARITY, Budget(), "int8", normalize=True) == ()
    assert excesses(PARITY, Budget(), "fp32", normalize=True) == ()


@pytest.mark.parametrize(
    ("head", "figure", "limit"),
    [
        ("dense", "cosine_mean", 0.9993),
        ("dense", "cosine_min", 0.998),
        ("colbert", "cosine_p5", 0.996),
        ("sparse", "jaccard_mean", 0.98),
    ],
)
@pytest.mark.parametrize("below", [1e-6, float("nan")])
def test_each_int8_figure_below_its_limit_is_found(head: str, figure: str, limit: float, below: float):
    (excess,) = excesses(worse(head, figure, limit - below), Budget(), "int8", normalize=True)
    assert excess.limit == limit
    assert head.lower() in excess.figure.lower()


@pytest.mark.parametrize(("head", "limit"), [("dense", 1e-5), ("sparse", 1e-5), ("colbert", 1e-4)])
@pytest.mark.parametrize("value", [1.01, float("nan")])
def test_fp32_is_held_to_arithmetic_noise_whatever_the_budget(head: str, limit: float, value: float):
    (excess,) = excesses(worse(head, "max_abs", limit * value), Budget(-1, -1, -1, -1), "fp32", normalize=True)
    assert excess.limit == limit


def test_a_looser_budget_lets_a_worse_figure_pass():
    assert excesses(worse("dense", "cosine_min", 0.9), Budget(dense_min=0.9), "int8", normalize=True) == ()


def test_fp32_is_not_held_to_the_budget():
    assert excesses(PARITY, Budget(1, 1, 1, 1), "fp32", normalize=True) == ()


def test_all_figures_are_reported_at_once():
    degenerate = DegenerateParity(texts=100, cosine_mean=0.99, cosine_min=0.9, below=3, below_what=0.998)
    parity = replace(PARITY, padded_dense_min=0.9, degenerate=degenerate)
    found = excesses(parity, Budget(1, 1, 1, 1), "int8", normalize=True)
    assert len(found) == len(fields(Budget)) + 1  # dense_min holds for a padded batch too
    assert str(found[-1]) == "share of 100 degenerate texts below 0.998: measured 0.03, budget 0.005"


def test_a_dense_only_parity_is_held_to_dense_figures():
    dense_only = replace(PARITY, sparse=None, colbert=None)
    assert [e.figure for e in excesses(dense_only, Budget(1, 1, 1, 1), "int8", normalize=True)] == [
        "dense cosine mean",
        "dense cosine min",
    ]


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_a_variant_that_heeds_its_neighbours_is_over_any_budget(precision: str):
    parity = replace(PARITY, batch_invariance_min=0.9999)
    (excess,) = excesses(parity, Budget(-1, -1, -1, -1), precision, normalize=True)
    assert excess.figure == "batch invariance"


def test_fp32_that_is_not_normalised_is_held_to_cosines():
    long_vectors = worse("dense", "max_abs", 3e-4)
    exact = replace(
        long_vectors,
        dense=replace(long_vectors.dense, cosine_min=1.0),
        colbert=replace(PARITY.colbert, cosine_min=1.0, max_abs=5e-3),
    )
    assert excesses(exact, Budget(), "fp32", normalize=False) == ()
    wrong = replace(exact, dense=replace(exact.dense, cosine_min=0.9999))
    assert [e.figure for e in excesses(wrong, Budget(), "fp32", normalize=False)] == ["dense cosine min"]


def test_an_excess_reads_as_a_sentence():
    assert str(Excess("dense cosine min", 0.9971234, 0.998)) == "dense cosine min: measured 0.997123, budget 0.998"
