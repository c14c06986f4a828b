from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_runtime.errors import BundleDamagedError
from m3_runtime.fewer_pieces import DroppedPieces, FewerPieces
from m3_runtime.unigram import Unigram

SINGLES = ["", "a", "b", "é", "▁"]
PIECES = st.lists(st.text("abé▁中", min_size=2, max_size=4), min_size=4, max_size=30, unique=True)
SCORES = st.sampled_from([-1.0, -2.0, -3.0, -4.5])


@given(PIECES, st.data(), st.lists(st.text("abé▁中x", min_size=1, max_size=12), min_size=1, max_size=8))
def test_with_the_dropped_pieces_a_vocabulary_splits_as_when_it_was_whole(pieces, data, words):
    names = ["<unk>", *SINGLES[1:], *pieces]
    scores = [data.draw(SCORES) for _ in names]
    gone = data.draw(st.sets(st.integers(1, len(names) - 1), min_size=1))
    whole = Unigram(names, scores, 0)
    fewer = FewerPieces.of(names, scores, [i for i in range(len(names)) if i not in gone])
    cut = Unigram(fewer.names, scores, 0)
    fuller = cut.with_pieces(fewer.dropped)
    for word in (*words, "ab" * 300, words[0] * 200):  # long words without a place where paths meet, too
        ids = whole.ids([word], 10_000)
        assert fuller.ids([word], 10_000) == ids
        if gone.isdisjoint(ids):
            assert cut.ids([word], 10_000) == ids
        assert gone.isdisjoint(cut.ids([word], 10_000))


def test_strings_with_one_checksum_are_told_apart():
    first, second = "plumless", "buckeroo"
    assert crc32(first.encode()) == crc32(second.encode())
    alone, both = DroppedPieces.of({5: first}), DroppedPieces.of({5: first, 9: second})
    assert (alone.id_of(first), alone.id_of(second)) == (5, None)
    assert (both.id_of(first), both.id_of(second), both.text_of(9)) == (5, 9, second)


NAMES = ["<unk>", "▁слово", "中文", "é", "▁a", "ключ"]
SCORES_OF = [0.0, -1.5, -2.0, -3.25, -1.0, -7.0]


def test_what_is_saved_is_read_and_the_same_pieces_give_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        FewerPieces.of(NAMES, SCORES_OF, [0, 2, 4]).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found = FewerPieces.open(tmp_path / "one")
    assert (found.names, found.scores.tolist()) == (["<unk>", "", "中文", "", "▁a", ""], SCORES_OF)
    assert {n: found.dropped.text_of(n) for n in (1, 3, 5)} == {1: "▁слово", 3: "é", 5: "ключ"}
    dropped = found.dropped
    assert (dropped.longest, dropped.id_of("ключ"), dropped.id_of("中文"), dropped.text_of(2)) == (6, 5, None, "")


@pytest.mark.parametrize(
    "change",
    [
        {"dropped_ids": np.array([1, 1, 3], np.int32)},
        {"dropped_ends": np.array([3, 2, 9], np.uint32)},
        {"checksums": np.zeros(3, np.int64)},
        {"checksums": np.array([3, 2, 1], np.uint32)},
        {"kept_text": np.zeros(2, np.uint8)},
        {"kept_text": np.full(13, 0xFF, np.uint8)},
        {"scores": np.zeros(5)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_damaged_files_are_refused(tmp_path, change):
    FewerPieces.of(NAMES, SCORES_OF, [0, 2, 4]).save(tmp_path / "whole")
    with np.load(tmp_path / "whole") as file:
        np.savez(tmp_path / "damaged.npz", **{**dict(file), **change})
    with pytest.raises(BundleDamagedError, match=r"damaged\.npz"):
        FewerPieces.open(tmp_path / "damaged.npz")
