"""The rule that is put back into sentencepiece's normalisation, and all those that must stay as they were."""

import unicodedata

import pytest
from tokenizers.normalizers import Precompiled

from m3_models.charsmap import sentencepiece_charsmap, with_joiner_as_space, xlmr_charsmap

JOINER = "\u200d"


def test_the_joiner_becomes_a_space() -> None:
    before, after = Precompiled(sentencepiece_charsmap()), Precompiled(xlmr_charsmap())
    assert before.normalize_str(f"a{JOINER}b") == f"a{JOINER}b"
    assert after.normalize_str(f"a{JOINER}b") == "a b"
    assert after.normalize_str("👩\u200d💻") == "👩 💻"
    assert after.normalize_str("क्\u200dष") == "क् ष"


def test_no_other_character_changes() -> None:
    before, after = Precompiled(sentencepiece_charsmap()), Precompiled(xlmr_charsmap())
    points = [
        *range(0x20, 0xD800),
        *range(0xE000, 0x11000),
        *range(0x1D400, 0x1D800),
        *range(0x1F000, 0x20000),
    ]
    assigned = (chr(point) for point in points if unicodedata.category(chr(point)) != "Cn")
    changed = [text for text in assigned if text != JOINER and before.normalize_str(text) != after.normalize_str(text)]
    assert changed == []


def test_putting_the_rule_in_twice_changes_nothing_more() -> None:
    assert with_joiner_as_space(xlmr_charsmap()) == xlmr_charsmap()


def test_a_table_without_the_neighbouring_rule_is_refused() -> None:
    empty_trie = (1024).to_bytes(4, "little") + bytes(1024)
    with pytest.raises(ValueError, match="not sentencepiece's nmt_nfkc"):
        with_joiner_as_space(empty_trie)
