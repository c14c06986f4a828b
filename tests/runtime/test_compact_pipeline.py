"""The compact pipeline against the package's: the same ids for any text, and the same text for any id."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3_runtime import Bundle, M3Encoder, TextTooLongError, compact_pipeline
from m3_runtime.compact_pipeline import CompactPipeline, is_compactable
from m3_runtime.tokenizer import M3Tokenizer, WholePipeline

TEXTS = [
    "",
    " ",
    "▁",
    "a▁b ▁▁c",
    "What is BGE M3?",
    "<s> literal </s> and <mask>here<pad><unk>",
    "＜s＞ full width",
    "\0 zero \0\0 bytes",
    "<0x41> is no byte",
    "😀😀 🫠x ﷺ ﬁ",
    "日本語のテキストをトークン化する。検索" * 20,
    "один два три",
    "line\nbreak\ttab\r\n",
    "e\u0301 combining",
    "the the the the",
    "x" * 3000,
]
PARTS = st.sampled_from([*TEXTS, "<mask>", "</s>", " ", "▁", "\u2581a", "ü", "漢字", "\u200b", "ก็", "Ａ１"])
ANYTHING = st.one_of(st.text(max_size=60), st.lists(PARTS, max_size=6).map("".join)).filter(
    lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text)
)
fixtures_are_shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture(scope="module", params=["tiny_bundle", "mini_bundle"])
def pair(request) -> tuple[M3Tokenizer, M3Tokenizer]:
    """The whole tokenizer and the compact one, of the bundle's file."""
    bundle = Bundle.open(request.getfixturevalue(request.param))
    info = bundle.manifest.tokenizer
    whole, compact = (M3Tokenizer.open(bundle.file(info.path), info, low_memory=low) for low in (False, True))
    assert isinstance(whole._pipeline, WholePipeline)
    assert isinstance(compact._pipeline, CompactPipeline)
    return whole, compact


def ids(tokenizer: M3Tokenizer, texts: list[str], max_length: int = 8192) -> list[list[int]]:
    return [row.tolist() for row in tokenizer.encode_batch(texts, max_length).ids]


def test_the_same_ids(pair):
    whole, compact = pair
    assert ids(compact, TEXTS) == ids(whole, TEXTS)
    assert [ids(compact, [text])[0] for text in TEXTS] == ids(whole, TEXTS)


@fixtures_are_shared
@given(texts=st.lists(ANYTHING, max_size=5))
def test_the_same_ids_for_any_text(pair, texts):
    whole, compact = pair
    assert ids(compact, texts) == ids(whole, texts)


def test_the_same_cuts_and_complaints(pair):
    whole, compact = pair
    texts = ["short", "many words in a row " * 4000, "漢字" * 3000]
    for max_length in (3, 16, 100):
        first, second = (tokenizer.encode_batch(texts, max_length) for tokenizer in pair)
        assert all(map(np.array_equal, first.ids, second.ids))
        assert first.is_cut.tolist() == second.is_cut.tolist()
    complaints = []
    for tokenizer in (whole, compact):
        with pytest.raises(TextTooLongError) as caught:
            tokenizer.encode_batch(texts, 16, "error")
        complaints.append(str(caught.value))
    assert complaints[0] == complaints[1]


def test_the_same_text_for_every_id(pair):
    whole, compact = pair
    assert compact.vocab_size == whole.vocab_size
    step = max(1, whole.vocab_size // 500)
    numbers = [*range(0, whole.vocab_size, step), whole.vocab_size - 1, 0, 1, 2, 3]
    assert [compact.decode([i]) for i in numbers] == [whole.decode([i]) for i in numbers]
    for text in TEXTS:
        (row,) = ids(whole, [text])
        assert compact.decode(row) == whole.decode(row)


def test_words_that_are_too_long_go_to_the_whole_pipeline(pair, monkeypatch):
    whole, compact = pair
    monkeypatch.setattr(compact_pipeline, "_LONGEST_WORD", 20)
    texts = ["short", "x" * 21 + " y", "漢字" * 30, "also short"]
    assert ids(compact, texts) == ids(whole, texts)


def test_work_in_small_runs_is_the_same(pair, monkeypatch):
    whole, compact = pair
    monkeypatch.setattr(compact_pipeline, "_WORK_BYTES", 7)
    assert ids(compact, TEXTS) == ids(whole, TEXTS)


@pytest.fixture
def content(tiny_bundle: Path) -> dict[str, Any]:
    return json.loads((tiny_bundle / "tokenizer.json").read_text(encoding="utf-8"))


def other_model(content: dict[str, Any]) -> None:
    content["model"] = {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}


def byte_fallback(content: dict[str, Any]) -> None:
    content["model"]["byte_fallback"] = True


def no_unknown(content: dict[str, Any]) -> None:
    content["model"]["unk_id"] = None


def not_split(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["pretokenizers"][-1]["split"] = False


def other_mark(content: dict[str, Any]) -> None:
    content["pre_tokenizer"]["pretokenizers"][-1]["replacement"] = "_"


def no_pre_tokenizer(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = None


def short_token(content: dict[str, Any]) -> None:
    content["added_tokens"].append({**content["added_tokens"][0], "content": "!", "id": 999999})


def zero_byte(content: dict[str, Any]) -> None:
    content["model"]["vocab"].append(["a\0b", -1.0])


def no_decoder(content: dict[str, Any]) -> None:
    content["decoder"] = None


STRANGE = (
    other_model, byte_fallback, no_unknown, not_split, other_mark, no_pre_tokenizer, short_token, zero_byte, no_decoder
)  # fmt: skip


@pytest.mark.parametrize("change", STRANGE)
def test_what_is_not_of_its_kind_is_left_to_the_package(content, change):
    assert is_compactable(content)
    change(content)
    assert not is_compactable(content)


def test_a_tokenizer_of_another_kind_still_opens(bundle_copy, tiny_bundle, content):
    byte_fallback(content)
    path = bundle_copy / "other.json"
    path.write_text(json.dumps(content))
    info = Bundle.open(tiny_bundle).manifest.tokenizer
    assert isinstance(M3Tokenizer.open(path, info, low_memory=True)._pipeline, WholePipeline)


def test_tokens_that_a_fine_tune_added(content, tmp_path, tiny_bundle):
    """Beyond the vocabulary, and among the ids that would be taken for bytes."""
    size = len(content["model"]["vocab"])
    for number, name in ((size + 50, "[NEW]"), (size + 51, "[ALSO]")):
        content["added_tokens"].append({**content["added_tokens"][-1], "content": name, "id": number})
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    info = Bundle.open(tiny_bundle).manifest.tokenizer
    whole, compact = (M3Tokenizer.open(path, info, low_memory=low) for low in (False, True))
    texts = ["a [NEW] token[ALSO]", "[NEW][NEW]"]
    assert ids(compact, texts) == ids(whole, texts)


def test_a_damaged_file_is_a_damaged_bundle(tmp_path, tiny_bundle):
    from m3_runtime import BundleDamagedError

    info = Bundle.open(tiny_bundle).manifest.tokenizer
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram"')
    with pytest.raises(BundleDamagedError, match="is not a tokenizer"):
        M3Tokenizer.open(tmp_path / "tokenizer.json", info, low_memory=True)


@pytest.mark.parametrize("variant", ["onnx-fp32", "onnx-int8", "openvino-int8"])
def test_low_memory_gives_the_same_vectors(mini_bundle, texts, variant):
    heads = {"return_sparse": True, "return_colbert_vecs": True}
    with (
        M3Encoder.open(mini_bundle, variant=variant, threads=2) as plain,
        M3Encoder.open(mini_bundle, variant=variant, threads=2, low_memory=True) as low,
    ):
        for corpus in (texts, [" ".join(texts)] * 3):
            first, second = plain.encode(corpus, **heads), low.encode(corpus, **heads)
            np.testing.assert_allclose(first.dense_vecs, second.dense_vecs, atol=1e-6)
            np.testing.assert_allclose(first.sparse.weights, second.sparse.weights, atol=1e-5)
            assert first.sparse.ids.tolist() == second.sparse.ids.tolist()
            for a, b in zip(first.colbert_vecs, second.colbert_vecs, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-6)
