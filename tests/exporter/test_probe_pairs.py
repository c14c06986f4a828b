"""Calibration and probe pairs of a reranker: disjoint, in many languages, with an order worth keeping."""

from collections import Counter
from pathlib import Path

import pytest

from m3_export.calibration.pairs import ChosenPairs, TextPair, degenerate_pairs, natural_pairs, pair_ids
from m3_export.calibration.texts import ChosenTexts, chosen_texts
from m3_export.calibration.texts.text import Text
from m3_export.errors import OptionsError
from m3_runtime.bundle.reader import Bundle
from m3_runtime.tokenizer import M3Tokenizer


@pytest.fixture(scope="module")
def texts() -> ChosenTexts:
    return chosen_texts(None, None)


@pytest.fixture(scope="module")
def pairs(texts: ChosenTexts) -> ChosenPairs:
    return ChosenPairs.of(texts)


def test_no_probe_pair_is_a_calibration_pair(pairs: ChosenPairs):
    calibration = {pair.text for pair in (*pairs.calibration, *pairs.degenerate_calibration)}
    natural = {pair.text for pair in pairs.probe}
    assert not natural & calibration
    assert len(natural) == len(pairs.probe)
    assert not {pair.text for pair in pairs.degenerate_probe} & calibration
    assert ChosenPairs.of(chosen_texts(None, None)) == pairs


def test_queries_are_of_many_languages_and_have_passages_of_every_degree(pairs: ChosenPairs, texts: ChosenTexts):
    counts = Counter(pair.number for pair in pairs.probe)
    assert len(counts) == 24 and set(counts.values()) == {16}
    languages, whole = set(), {text.text: text for text in texts.probe}
    for number in counts:
        query, *_ = {pair.query for pair in pairs.probe if pair.number == number}
        passages = [pair.passage for pair in pairs.probe if pair.number == number]
        own = whole[passages[0]]
        languages.add(own.lang)
        assert own.text.startswith(query) and len(query) <= 64
        others = [next(t for t in texts.probe if t.text.startswith(p)) for p in passages[3:]]
        degrees = Counter(text.lang == own.lang for text in others)
        assert degrees[False] >= 8 and degrees[True] >= 1
    assert len(languages) >= 20
    lengths = [len(pair.passage) for pair in pairs.probe]
    assert min(lengths) < 81 and max(lengths) > 1000


def test_degenerate_pairs_have_empty_sides_and_equal_ones(pairs: ChosenPairs):
    found = pairs.degenerate_probe
    assert len(found) == 256
    sides = [(pair.query, pair.passage) for pair in found]
    assert ("", "") not in sides
    assert any(query and not passage for query, passage in sides)
    assert any(passage and not query for query, passage in sides)
    assert sum(query == passage for query, passage in sides) > 40
    assert any(len(query) == 1 for query, _ in sides) and any(len(passage) == 1 for _, passage in sides)


def test_few_texts_give_what_pairs_they_can():
    one = natural_pairs([Text("1", "en", "given", "word " * 40)], 4, 4)
    assert len({pair.text for pair in one}) == len(one) >= 2
    assert degenerate_pairs([], [], 5) == ()
    alone = ChosenTexts((), (Text("1", "en", "given", "one"),), (), (), ())
    with pytest.raises(OptionsError, match=r"give 1 pairs of a query and a passage; .* give several texts"):
        ChosenPairs.of(alone)


def test_ids_keep_both_sides_however_short_they_have_to_be(reranker_bundle: Path):
    bundle = Bundle.open(reranker_bundle)
    tokenizer = M3Tokenizer.open(bundle.file("tokenizer.json"), bundle.manifest.tokenizer)
    pairs = [TextPair("the model " * 200, "a word " * 200, 0), TextPair("", "", 1), TextPair("the", "model " * 99, 2)]
    for longest in (8, 16, 32, 512):
        long, empty, short = (row.tolist() for row in pair_ids(tokenizer, pairs, longest))
        assert len(long) == longest and len(short) == min(longest, len(short))
        assert empty == [0, 2, 2, 2]
        for row in (long, short):
            middle = row.index(2)
            assert (row[0], row[middle + 1], row[-1]) == (0, 2, 2)
            assert 1 < middle < len(row) - 3
