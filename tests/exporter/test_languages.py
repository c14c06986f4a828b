"""Bundles without the pieces of other languages: the same vectors where all pieces are left, and counted where not."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from export_command import export
from qdrant_client import QdrantClient
from tokenizers import Tokenizer

from m3_bench.retrieval.vectors import TextEncoder
from m3_export.calibration.texts import calibration_texts
from m3_export.checkpoint.languages import Characters, known_languages
from m3_export.checkpoint.tokenizer import CheckpointTokenizer, prove_same_ids
from m3_export.checkpoint.vocabulary import cut_tokenizer, pieces_of_corpora
from m3_runtime import Bundle, InputError, M3Encoder, SpaceMismatchError, VocabularyDriftWarning, check_space
from m3_runtime.bundle.manifest import EngineName, Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.integrations.adapters import PlainVectors
from m3_runtime.integrations.qdrant import Passage, QdrantIndex
from m3_runtime.io.progress import Progress

KEPT = ("What is the model?", "", "search 什么模型 2024!", "向量检索 and dense vectors", "a" * 300, "<mask> 你好")
DROPPED = ("текст на русском", "日本語です ます", "search ไม่ 3", "the การ")
VARIANTS = ("onnx-fp32", "onnx-int8", "openvino-int8")


@pytest.fixture(scope="module", params=VARIANTS)
def both(request, tiny_bundle: Path, small_bundle: Path) -> Iterator[tuple[M3Encoder, M3Encoder]]:
    """A variant of tiny-random, whole and with fewer pieces."""
    with (
        M3Encoder.open(tiny_bundle, variant=request.param, threads=1) as whole,
        M3Encoder.open(small_bundle, variant=request.param, threads=1) as small,
    ):
        yield whole, small


def encode(encoder: M3Encoder, texts: list[str]) -> Encoding:
    return encoder.encode(texts, return_sparse=True, return_colbert_vecs=True)


def assert_same(one: Encoding, other: Encoding, row: int, other_row: int) -> None:
    assert one.dense_vecs[row].tobytes() == other.dense_vecs[other_row].tobytes()
    assert one.lexical_weights[row] == other.lexical_weights[other_row]
    assert one.colbert_vecs[row].tobytes() == other.colbert_vecs[other_row].tobytes()


def test_texts_whose_pieces_are_left_have_the_same_bits_alone_and_in_a_batch(both):
    whole, small = both
    expected, found = encode(whole, list(KEPT)), encode(small, list(KEPT))
    assert expected.out_of_vocabulary == found.out_of_vocabulary == 0
    for row, text in enumerate(KEPT):
        assert_same(expected, found, row, row)
        assert_same(encode(whole, [text]), encode(small, [text]), 0, 0)


def test_classes_that_hand_on_vectors_alone_log_what_was_dropped_and_cut(small_bundle, caplog):
    with M3Encoder.open(small_bundle, variant="onnx-fp32", threads=1) as small:
        plain = PlainVectors(small, max_length=8)
        index = QdrantIndex.create(QdrantClient(":memory:"), "small", small)
        for call in (
            lambda: plain.dense([*DROPPED, *KEPT]),
            lambda: plain.lexical([*DROPPED, *KEPT]),
            lambda: index.add([Passage(n, text) for n, text in enumerate((*DROPPED, *KEPT))], max_length=8),
        ):
            caplog.clear()
            call()
            cut, dropped = caplog.messages
            assert cut.endswith("of 10 texts had more tokens than the maximum and were cut")
            assert dropped == "4 of 10 texts have pieces that the bundle dropped"
        caplog.clear()
        index.search(DROPPED[0])
        assert caplog.messages == ["1 of 1 texts have pieces that the bundle dropped"]


def test_the_benchmarks_vectors_count_them(small_bundle):
    with M3Encoder.open(small_bundle, variant="onnx-fp32", threads=1) as small:
        assert TextEncoder(small, None, Progress(quiet=True)).vectors([*DROPPED, *KEPT], "texts").out_of_vocabulary == 4
        with pytest.raises(InputError, match="text 0 has the id"):
            small.encode_ids([np.array([0, small.vocab_size + 7, 2], np.int32)], {Head.DENSE})


def test_texts_with_dropped_pieces_are_counted_and_do_not_change_their_company(both):
    _, small = both
    alone, mixed = encode(small, list(KEPT)), encode(small, [*DROPPED, *KEPT])
    assert mixed.out_of_vocabulary == len(DROPPED)
    for row in range(len(KEPT)):
        if small.variant.engine is EngineName.OPENVINO:  # ONNX Runtime's last bits depend on how many rows there are
            assert_same(alone, mixed, row, row + len(DROPPED))
        np.testing.assert_allclose(mixed.dense_vecs[row + len(DROPPED)], alone.dense_vecs[row], atol=1e-6)


def test_others_get_the_vectors_of_what_the_smaller_tokenizer_makes_of_them(both, small_bundle):
    whole, small = both
    found, package = encode(small, list(DROPPED)), Tokenizer.from_file(str(small_bundle / "tokenizer.json"))
    ids = [np.array(package.encode(text).ids, np.int32) for text in DROPPED]
    expected = whole.encode_ids(ids, whole.bundle.manifest.heads)
    for row in range(len(DROPPED)):
        assert_same(expected, found, row, row)
    assert small.encode(DROPPED[0]).out_of_vocabulary == 1


def test_what_is_cut_away_does_not_count(both):
    whole, small = both
    text = "the model " * 30 + DROPPED[0]
    assert encode(small, [text]).out_of_vocabulary == 1
    cut = small.encode([text], max_length=20)
    assert cut.out_of_vocabulary == 0
    assert cut.dense_vecs.tobytes() == whole.encode([text], max_length=20).dense_vecs.tobytes()


def test_pairs_count_both_sides(both):
    scores = both[1].score_pairs([(KEPT[0], DROPPED[0]), (DROPPED[0], DROPPED[1]), (KEPT[0], KEPT[2])])
    assert scores.out_of_vocabulary == 3


def test_ids_without_a_row_are_refused_by_name(both):
    whole, small = both
    ids = whole.tokenizer.encode_batch(["на"], 9).ids
    with pytest.raises(InputError, match=rf"text 0 has the id {ids[0][1]} \('▁на'\)"):
        small.encode_ids(ids, small.bundle.manifest.heads)


def test_shown_pieces_are_those_that_are_encoded(small_bundle, tiny_bundle):
    with M3Encoder.open(small_bundle, threads=1) as small:
        for text in (*KEPT, *DROPPED):
            shown = [piece.id for piece in small.tokenizer.pieces(text)]
            assert shown == small.tokenizer.encode_batch([text], 512).ids[0].tolist()
        on = small.tokenizer.encode_batch(["на"], 9)
        assert on.out_of_vocabulary == 1
        with M3Encoder.open(tiny_bundle, threads=1) as whole:
            ids = whole.tokenizer.encode_batch(["на что"], 9).ids[0].tolist()
            assert small.tokenizer.decode(ids) == whole.tokenizer.decode(ids)


def test_the_manifest_says_what_was_left_out_and_what_it_costs(small_bundle, tiny_bundle):
    small, whole = Bundle.open(small_bundle, verify="full").manifest, Bundle.open(tiny_bundle).manifest
    kept = small.vocabulary
    assert whole.vocabulary is None
    assert kept.full_space_id == whole.space_id
    assert small.space_id.startswith(whole.space_id + "+")
    assert 0 < kept.rows < small.geometry.vocab_size == whole.geometry.vocab_size
    assert kept.loss["latin"].exact > kept.loss["cyrillic"].exact == 0
    assert kept.loss["cyrillic"].cosine_min <= kept.loss["cyrillic"].cosine_mean < 0.999
    assert all(0 <= loss.exact <= loss.texts for loss in kept.loss.values())
    rows = kept.rows * 4 * small.geometry.hidden_size
    full_rows = small.geometry.vocab_size * 4 * small.geometry.hidden_size
    sizes = [next(e.size_bytes for e in m.files if e.path == "onnx/model.onnx_data") for m in (small, whole)]
    assert sizes[1] - sizes[0] == pytest.approx(full_rows - rows, abs=8192)


def test_an_index_of_the_whole_model_and_the_smaller_bundle_go_together_with_a_word(small_bundle, encoder):
    with M3Encoder.open(small_bundle, variant="onnx-fp32", threads=1) as small:
        for one, other in ((small, encoder), (encoder, small)):
            with pytest.warns(VocabularyDriftWarning, match="another choice of pieces"):
                check_space(one.space_id, one.variant.name, other)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_space(small.space_id, "onnx-fp32", small)
        with pytest.raises(SpaceMismatchError):
            check_space("m3-other+" + small.space_id.partition("+")[2], "onnx-fp32", small)


def test_a_vocabulary_from_texts_keeps_their_pieces_and_can_spell_the_rest(tiny_random_checkpoint, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": "search in the model"}) + "\n" + json.dumps({"text": "в тексте"}) + "\n")
    original = CheckpointTokenizer.open(tiny_random_checkpoint, 560)
    full = prove_same_ids(original, tmp_path, [])
    kept = pieces_of_corpora(original.saved, full, [str(corpus)])
    cut, runtime = cut_tokenizer(original, full, kept, tmp_path, ["любой текст", "any text", "中文"])
    names = [piece for piece, _ in json.loads(cut.saved)["model"]["vocab"]]
    assert {"▁search", "▁the", "q", "я", "7", "!", "<mask>"} <= set(names)
    assert not {"▁token", "中", "▁на"} & set(names)
    found = runtime.encode_batch(["search the model", "token", "中"], 512)
    assert found.is_respelled.tolist() == [False, True, True]
    assert kept.chosen_by == "texts of corpus.jsonl (2 texts)"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--languages", "en,tlh"], "the language 'tlh' is not known; known are af, am, ar"),
        (["--languages", ","], "no language is named; known are af"),
        (["--languages", "en", "--vocabulary-from", "{corpus}"], "give one of them"),
        (["--vocabulary-from", "{empty}"], "holds no texts"),
        (["--vocabulary-from", "{missing}"], "No such file"),
        (["--vocabulary-from", __file__], "known endings are .jsonl"),
        (["--vocabulary-from", "-"], "not standard input"),
        (["--languages", ",".join(known_languages())], "keep every one of the 560 pieces"),
    ],
)
def test_what_leaves_nothing_out_or_cannot_be_read_writes_nothing(tiny_random_checkpoint, tmp_path, flags, said):
    (tmp_path / "corpus.txt").write_text("a text")
    (tmp_path / "empty.txt").write_text("\n \n\u200b\x01\n")
    given = [
        flag.format(**{name: tmp_path / f"{name}.txt" for name in ("corpus", "empty", "missing")}) for flag in flags
    ]
    done = export(tiny_random_checkpoint, "--variants", "onnx-fp32", *given, "--quiet", tmp_path / "out")
    assert (done.code, done.out.exists()) == (2, False)
    assert said in done.stderr


def test_a_checkpoint_alone_takes_no_choice_of_pieces(tmp_path):
    done = export("tiny-random", "--checkpoint-only", "--languages", "en", tmp_path / "out")
    assert (done.code, done.out.exists()) == (2, False)
    assert "--checkpoint-only writes the whole vocabulary" in done.stderr


def test_every_known_language_spells_its_own_calibration_texts():
    known = set(known_languages())
    for text in calibration_texts():
        if text.lang in known and text.kind == "prose":
            words = text.text.split()
            spelt = sum(Characters.of([text.lang]).spell(word) for word in words)
            assert spelt >= 0.9 * len(words), (text.lang, text.id)
