"""Our segmentation against the package's own, on vocabularies and words that are made to be hard."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from m3_runtime.unigram import Trie, Unigram

# Few letters, of one to four bytes, so that pieces overlap and characters are often unknown.
LETTERS = "ab▁é漢😀"
PIECES = st.lists(st.text(LETTERS, min_size=1, max_size=5), min_size=1, max_size=25, unique=True)
# Few scores, so that paths tie; some that no binary fraction holds, so that the order of additions shows.
SCORES = st.sampled_from([0.0, -1.0, -2.0, -0.1, -0.2, -0.3, -1.1, -7.77])
WORDS = st.lists(st.text(LETTERS + "xy\0", min_size=1, max_size=30), min_size=1, max_size=12)


def both(vocabulary: list[tuple[str, float]]) -> tuple[Unigram, Tokenizer]:
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": False}
    ours = Unigram([piece.encode() for piece, _ in vocabulary], [score for _, score in vocabulary], 0)
    return ours, Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


@given(pieces=PIECES, words=WORDS, data=st.data())
def test_the_same_ids_as_the_package(pieces, words, data):
    vocabulary = [("<unk>", 0.0), *((piece, data.draw(SCORES)) for piece in pieces)]
    ours, package = both(vocabulary)
    got = ours.segment([word.encode() for word in words])
    assert [ids.tolist() for ids in got] == [package.encode(word).ids for word in words]


@given(pieces=PIECES, words=WORDS)
def test_words_together_and_alone_are_the_same(pieces, words):
    ours, _ = both([("<unk>", 0.0), *((piece, -len(piece) - 0.1) for piece in pieces)])
    spelled = [word.encode() for word in words]
    together = ours.segment(spelled)
    assert all(np.array_equal(ids, ours.segment([word])[0]) for ids, word in zip(together, spelled, strict=True))


@given(PIECES)
def test_a_trie_holds_its_pieces_and_no_others(pieces):
    spelled = [piece.encode() for piece in pieces]
    trie = Trie.of(spelled)
    assert (np.diff(trie.edges) > 0).all()
    for number, piece in enumerate(spelled):
        text = np.frombuffer(piece + b"\0", np.uint8)
        _, ends, found = trie.prefixes(text, np.array([0]))
        expected = {(len(other), i) for i, other in enumerate(spelled) if piece.startswith(other)}
        assert set(zip(ends.tolist(), found.tolist(), strict=True)) == expected
        assert (len(piece), number) in expected


def test_of_equal_pieces_the_last_counts():
    ours, package = both([("?", 0.0), ("a", -1.0), ("a", -2.0)])
    assert ours.segment([b"aa"])[0].tolist() == package.encode("aa").ids == [2, 2]


def test_no_words_and_empty_words():
    ours, _ = both([("?", 0.0), ("a", -1.0)])
    assert ours.segment([]) == []
    assert [ids.tolist() for ids in ours.segment([b"", b"a", b"", b"a"])] == [[], [1], [], [1]]


@pytest.mark.parametrize("length", [1, 1000])
def test_unknown_characters_are_one_id_a_run(length):
    ours, _ = both([("?", 0.0), ("a", -1.0)])
    assert ours.segment([b"a" + "é".encode() * length + b"a", b"xa"])[0].tolist() == [1, 0, 1]
