from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_runtime.dropped_pieces import DroppedPieces
from m3_runtime.errors import BundleDamagedError
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
    cut = Unigram(["" if i in gone else name for i, name in enumerate(names)], scores, 0)
    fuller = cut.with_pieces(DroppedPieces({i: names[i] for i in gone}))
    for word in words:
        ids = whole.ids([word], 100)
        assert fuller.ids([word], 100) == ids
        if gone.isdisjoint(ids):
            assert cut.ids([word], 100) == ids
        assert gone.isdisjoint(cut.ids([word], 100))


def test_strings_with_one_checksum_are_told_apart():
    first, second = "plumless", "buckeroo"
    assert crc32(first.encode()) == crc32(second.encode())
    alone, both = DroppedPieces({5: first}), DroppedPieces({5: first, 9: second})
    assert (alone.id_of(first), alone.id_of(second)) == (5, None)
    assert (both.id_of(first), both.id_of(second), both.text_of(9)) == (5, 9, second)


def test_what_is_saved_is_read_and_the_same_pieces_give_the_same_bytes(tmp_path):
    pieces = {7: "▁слово", 3: "中文", 300: "é"}
    for name, given_pieces in (("one", pieces), ("two", dict(reversed(pieces.items())))):
        DroppedPieces(given_pieces).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    found = DroppedPieces.open(tmp_path / "one", 301)
    assert {number: found.text_of(number) for number in pieces} == pieces
    assert (found.longest, found.id_of("中文"), found.id_of("中"), found.text_of(8)) == (6, 3, None, "")
    with pytest.raises(BundleDamagedError, match="ids from 0 to 299"):
        DroppedPieces.open(tmp_path / "one", 300)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": np.array([7, 7, 3], np.int32)},
        {"ends": np.array([3, 2, 9], np.uint32)},
        {"checksums": np.zeros(3, np.int64)},
        {"text": np.zeros(2, np.uint8)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_damaged_files_are_refused(tmp_path, change):
    DroppedPieces({7: "▁a", 3: "bc", 30: "d"}).save(tmp_path / "whole")
    with np.load(tmp_path / "whole") as file:
        np.savez(tmp_path / "damaged.npz", **{**dict(file), **change})
    with pytest.raises(BundleDamagedError, match=r"damaged\.npz"):
        DroppedPieces.open(tmp_path / "damaged.npz", 100)
