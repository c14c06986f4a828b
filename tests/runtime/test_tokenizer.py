import json
import pickle
import random
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from m3_runtime import Bundle, BundleDamagedError, BundleFormatError, InputError, TextTooLongError, unigram
from m3_runtime import tokenizer as tokenizer_module
from m3_runtime.tokenizer import M3Tokenizer, OnTruncate, checked_texts


@pytest.fixture(scope="session")
def mini_tokenizer(mini_bundle: Path) -> M3Tokenizer:
    bundle = Bundle.open(mini_bundle)
    return M3Tokenizer.open(bundle.file(bundle.manifest.tokenizer.path), bundle.manifest.tokenizer)


@dataclass(frozen=True)
class Both:
    """A pipeline as the package reads it, and as we do."""

    plain: Tokenizer
    ours: M3Tokenizer


def both(pipeline: Tokenizer, info) -> Both:
    pipeline.no_truncation()
    pipeline.no_padding()
    return Both(pipeline, M3Tokenizer(json.loads(pipeline.to_str()), info))


@pytest.fixture(scope="session")
def pipelines(tiny_bundle: Path, mini_bundle: Path) -> list[Both]:
    """Both bundles' pipelines; and as transformers 4 writes it: blanks shrink to one, and a trailing one is a token."""
    tiny, mini = (
        both(Tokenizer.from_file(str(b / "tokenizer.json")), tokenizer_info(b)) for b in (tiny_bundle, mini_bundle)
    )
    keeps_blanks = Tokenizer.from_str(mini.plain.to_str())
    shrink = normalizers.Replace(Regex(" {2,}"), " ")
    keeps_blanks.normalizer = normalizers.Sequence([keeps_blanks.normalizer, shrink])
    keeps_blanks.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return [tiny, mini, both(keeps_blanks, mini.ours.info)]


@pytest.fixture(scope="session")
def plain(tiny_bundle: Path) -> Tokenizer:
    """The same pipeline without anything of ours."""
    pipeline = Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    pipeline.no_truncation()
    pipeline.no_padding()
    return pipeline


def test_an_empty_text_is_the_two_special_tokens(tokenizer):
    (ids,) = tokenizer.encode_batch([""], 512).ids
    assert ids.tolist() == [tokenizer.info.cls_id, tokenizer.info.eos_id]


def test_no_texts(tokenizer):
    result = tokenizer.encode_batch([], 512)
    assert result.ids == ()
    assert result.lengths.shape == (0,)


def test_cutting_keeps_the_last_special_token(tokenizer, plain):
    text = "some words that are more than ten tokens for this small vocabulary"
    whole = plain.encode(text).ids
    result = tokenizer.encode_batch([text, "a"], 10)
    assert result.ids[0].tolist() == [*whole[:9], tokenizer.info.eos_id]
    assert result.truncated == 1
    assert result.lengths.tolist()[0] == 10


def test_a_text_of_exactly_max_length_is_whole(tokenizer, plain):
    text = "exactly as long"
    ids = plain.encode(text).ids
    result = tokenizer.encode_batch([text], len(ids))
    assert result.ids[0].tolist() == ids
    assert result.truncated == 0


def test_refusing_long_texts_names_index_count_and_limit(tokenizer, plain):
    text = "some words that are more than ten tokens for this small vocabulary"
    with pytest.raises(
        TextTooLongError, match=f"text 1 has {len(plain.encode(text).ids)} tokens, the limit is 10"
    ) as caught:
        tokenizer.encode_batch(["a", text], 10, OnTruncate.ERROR)
    assert (caught.value.index, caught.value.max_length) == (1, 10)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_literal_special_tokens_are_special(tokenizer):
    (ids,) = tokenizer.encode_batch(["a </s> b <pad> c"], 512).ids
    assert ids.tolist().count(tokenizer.info.eos_id) == 2
    assert tokenizer.info.pad_id in ids.tolist()


def test_decoding_shows_special_tokens(tokenizer):
    assert tokenizer.decode([tokenizer.info.unk_id]) == "<unk>"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)

# Words, blanks of every kind, characters that join with what follows them, specials: whatever could make a prefix
# tokenize differently from the whole.
WORDS = ["a", "the ", "word", "é", "日本", "▁", "😀", "ﬁ", "①", "İ", "."]
BLANKS = [" ", "  ", "\n", "\t", "\r\n", "\u3000", "\u00a0", "\u2028", "\x1f"]
JOINING = ["\u0600", "\u200d", "\u0301", "\u0d4e", "👩\u200d👩"]
SPECIALS = ["</s>", "<mask>", " <mask>", "<s> "]
PIECES = st.sampled_from([*WORDS, *BLANKS, *JOINING, *SPECIALS])


@settings(max_examples=300)
@given(text=st.lists(PIECES | TEXT, max_size=60).map("".join), max_length=st.integers(3, 20))
def test_prefixes_of_long_texts_are_exact(text, max_length, pipelines, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "_MIN_PREFIX_CHARS", 4)
    monkeypatch.setattr(tokenizer_module, "_CHARS_PER_TOKEN", 1)
    for each in pipelines:
        whole = each.plain.encode(text).ids
        result = each.ours.encode_batch([text], max_length)
        expected = whole if len(whole) <= max_length else [*whole[: max_length - 1], each.ours.info.eos_id]
        assert result.ids[0].tolist() == expected
        assert result.truncated == (len(whole) > max_length)


# Ties and unknown characters in a row are where segmentations part; and names of special tokens that only normalizing
# makes, which are no special tokens but pieces.
UNITS = ["a", "aa", "ab", "abc", "0", "00", ".", "..", "-", "日", "日本", "का", "ก", "\U0001f9ff", "＜unk＞", "＜s＞"]


@settings(max_examples=300)
@given(text=st.lists(st.sampled_from(UNITS) | PIECES | TEXT, max_size=60).map("".join))
def test_ids_and_places_are_the_packages(text, pipelines):
    for each in pipelines:
        for with_specials in (True, False):
            expected = each.plain.encode(text, add_special_tokens=with_specials)
            found = each.ours.pieces(text, with_specials=with_specials)
            assert [piece.id for piece in found] == expected.ids
            assert [(piece.start, piece.stop) for piece in found] == expected.offsets
            assert [piece.is_special for piece in found] == [bool(mask) for mask in expected.special_tokens_mask]


@pytest.mark.parametrize("block", [1, 7, 256])
def test_long_words_are_decided_block_by_block_as_at_once(block, pipelines, monkeypatch):
    monkeypatch.setattr(unigram, "_BLOCK_CHARS", block)
    dice = random.Random(20)
    words = ["".join(dice.choices(UNITS, k=200)) for _ in range(20)]
    words += [unit * 700 for unit in UNITS]
    for each in pipelines:
        wholes = [each.plain.encode(word).ids for word in words]
        assert [ids.tolist() for ids in each.ours.encode_batch(words, 10_000).ids] == wholes
        for whole, ids in zip(wholes, each.ours.encode_batch(words, 9).ids, strict=True):
            assert ids.tolist()[:8] == whole[:8]


REPEATED = st.sampled_from(UNITS) | st.text(st.sampled_from("ab01.日\U0001f9ff"), min_size=1, max_size=5)


@settings(max_examples=20)
@given(before=TEXT, unit=REPEATED, times=st.integers(50, 1000), after=REPEATED)
def test_words_whose_paths_do_not_meet_are_the_packages_too(before, unit, times, after, pipelines, monkeypatch):
    monkeypatch.setattr(unigram, "_BLOCK_CHARS", 16)
    monkeypatch.setattr(unigram, "_MOST_UNDECIDED_CHARS", 32)
    text = before + unit * times + after
    for each in pipelines:
        whole = each.plain.encode(text).ids
        assert each.ours.encode_batch([text], 20_000).ids[0].tolist() == whole
        assert each.ours.encode_batch([text], 9).ids[0].tolist()[:8] == whole[:8]
        assert [piece.id for piece in each.ours.pieces(text)] == whole


@pytest.mark.parametrize("word", ["x" * 99_991, "ab" * 30_011, "a1" * 99 + "=" * 50_000, "xy" * 9_999 + "日本語" * 99])
def test_long_words_of_one_unit(mini_tokenizer, pipelines, word):
    plain = pipelines[1].plain.encode(word).ids
    assert mini_tokenizer.encode_batch([word], 200_000).ids[0].tolist() == plain


def test_the_same_vocabulary(pipelines):
    for each in pipelines:
        size = each.plain.get_vocab_size()
        assert each.ours.vocab_size == size
        ids = [0, 1, 2, size - 1, *random.Random(3).choices(range(size), k=200)]
        for some in (*([one] for one in ids), ids):
            assert each.ours.decode(some) == each.plain.decode(some, skip_special_tokens=False)


def test_golden_ids_of_transformers(mini_tokenizer):
    """mini-m3's pieces are XLM-R's."""
    golden = Path(__file__).parents[1] / "golden" / "tokenizer_golden_ids.json"
    for text, ids in json.loads(golden.read_text(encoding="utf-8"))["cases"]:
        assert mini_tokenizer.encode_batch([text], 8192).ids[0].tolist() == ids


@pytest.mark.parametrize(
    ("unit", "megabytes"), [("The quick brown fox. ", 10), ("nospacesatall", 10), ("日本語のテキスト", 2), ("a\n", 10)]
)
def test_megabytes(mini_tokenizer, unit, megabytes):
    text = unit * (megabytes * 1_000_000 // len(unit.encode()))
    (ids,) = mini_tokenizer.encode_batch([text], 512).ids
    (start,) = mini_tokenizer.encode_batch([text[:20_000]], 512).ids
    assert ids.tolist() == start.tolist()
    assert ids.size == 512


def test_threads_with_different_lengths_do_not_meet(tokenizer, texts):
    alone = {n: [row.tolist() for row in tokenizer.encode_batch(texts, n).ids] for n in (4, 9, 512)}
    failures = []

    def work(max_length: int) -> None:
        for _ in range(30):
            if [row.tolist() for row in tokenizer.encode_batch(texts, max_length).ids] != alone[max_length]:
                failures.append(max_length)

    threads = [threading.Thread(target=work, args=(n,)) for n in (4, 9, 512) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_truncation_and_padding_in_the_file_are_switched_off(bundle_copy, plain):
    pipeline = Tokenizer.from_str(plain.to_str())
    pipeline.enable_truncation(4)
    pipeline.enable_padding(length=64)
    path = bundle_copy / "tokenizer.json"
    path.unlink()
    pipeline.save(str(path))
    ours = M3Tokenizer.open(path, tokenizer_info(bundle_copy))
    assert ours.encode_batch(["a b c d e f g"], 512).ids[0].tolist() == plain.encode("a b c d e f g").ids


def test_a_file_that_is_no_tokenizer(bundle_copy):
    path = bundle_copy / "tokenizer.json"
    path.unlink()
    path.write_text("{}")
    with pytest.raises(BundleDamagedError, match="not a tokenizer"):
        M3Tokenizer.open(path, tokenizer_info(bundle_copy))


@pytest.mark.parametrize(
    "change",
    [
        {"type": "BPE"},
        {"byte_fallback": True},
        {"unk_id": 560},
        {"unk_id": None},
        {"vocab": []},
        {"vocab": [["a", float("nan")]], "unk_id": 0},
    ],
)
def test_a_vocabulary_that_is_not_xlm_rs(bundle_copy, plain, change):
    spec = json.loads(plain.to_str())
    spec["model"] |= change
    path = bundle_copy / "tokenizer.json"
    path.unlink()
    path.write_text(json.dumps(spec))
    with pytest.raises(BundleDamagedError, match="is not a tokenizer that this release reads"):
        M3Tokenizer.open(path, tokenizer_info(bundle_copy))


def test_a_pipeline_with_other_special_tokens(bundle_copy, plain):
    from tokenizers.processors import TemplateProcessing

    pipeline = Tokenizer.from_str(plain.to_str())
    pipeline.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    path = bundle_copy / "tokenizer.json"
    path.unlink()
    pipeline.save(str(path))
    with pytest.raises(BundleFormatError, match="turns an empty text into"):
        M3Tokenizer.open(path, tokenizer_info(bundle_copy))


def tokenizer_info(folder: Path):
    from m3_runtime.bundle.manifest import Manifest

    return Manifest.from_text((folder / "manifest.json").read_text()).tokenizer


@pytest.mark.parametrize("item", [None, 3, b"bytes", ["nested"], float("nan")])
def test_items_that_are_not_texts_are_named(item):
    with pytest.raises(InputError, match=f"text 2 must be a str, got {type(item).__name__}"):
        checked_texts(["a", "b", item])


@pytest.mark.parametrize("collection", [None, 3, b"bytes", {"a": 1}])
def test_what_is_no_collection_of_texts(collection):
    with pytest.raises(InputError, match="expected a text or a list of texts"):
        checked_texts(collection)


def test_collections_other_than_lists():
    assert checked_texts(("a", "b")) == checked_texts(np.array(["a", "b"])) == checked_texts(iter(["a", "b"]))


def test_a_lone_surrogate_is_named_and_the_remedy_works():
    text = "good \ud83d bad"
    with pytest.raises(InputError, match=r"text 1 has a lone surrogate \(U\+D83D\) at position 5"):
        checked_texts(["fine", text])
    assert checked_texts([text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")])
