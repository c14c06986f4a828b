"""The calibration and probe texts: many languages and kinds, 5 to 400 words, never the same text on both sides."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from m3_export.calibration.texts import Text, calibration_texts, check_disjoint, digest, probe_texts
from m3_export.errors import OptionsError

CALIBRATION, PROBE = calibration_texts(), probe_texts()
BOTH = pytest.mark.parametrize("texts", [CALIBRATION, PROBE], ids=["calibration", "probe"])
# Scripts without blanks between words: about this many characters make a word.
CHARS_PER_WORD = {"zh": 1.7, "ja": 2.0, "th": 4.5, "lo": 4.5, "km": 4.5, "my": 4.5}


def words(text: Text) -> int:
    per_word = CHARS_PER_WORD.get(text.lang.partition("-")[0])
    return len(text.text.split()) if per_word is None else round(len(re.sub(r"\s", "", text.text)) / per_word)


@BOTH
def test_there_are_fifteen_languages_and_more(texts: tuple[Text, ...]):
    languages = Counter(text.lang for text in texts)
    assert len(languages) >= 15, languages
    assert {"en", "zh", "de", "ar", "th", "ja", "ko", "hi", "ru"} <= languages.keys()
    assert max(languages.values()) <= len(texts) / 2, "one language must not drown the others"


@BOTH
def test_code_and_numbers_are_there(texts: tuple[Text, ...]):
    assert {"code", "query"} <= {text.kind for text in texts}
    assert any(sum(c.isdigit() for c in text.text) > 10 for text in texts)


@BOTH
def test_lengths_reach_from_a_query_to_a_page(texts: tuple[Text, ...]):
    lengths = {text.id: words(text) for text in texts}
    assert not {id_: n for id_, n in lengths.items() if n > 450}, "400 words, give or take how words are counted"
    assert min(lengths.values()) <= 12 and max(lengths.values()) >= 250
    assert not {text.id for text in texts if words(text) < 3}


@BOTH
def test_texts_are_whole_and_their_ids_unique(texts: tuple[Text, ...]):
    assert len({text.id for text in texts}) == len(texts) >= 60
    assert len({" ".join(text.text.casefold().split()) for text in texts}) == len(texts)
    assert all(text.text.strip() for text in texts)
    assert not [text.id for text in texts if "\ufffd" in text.text]


def test_the_two_are_disjoint_even_in_their_sentences():
    check_disjoint(CALIBRATION, PROBE)
    assert not {t.id for t in CALIBRATION} & {t.id for t in PROBE}
    sentences = [
        {s.strip().casefold() for t in texts for s in re.split(r"[.!?。！？\n]+", t.text) if len(s.strip()) > 30}
        for texts in (CALIBRATION, PROBE)
    ]
    assert not sentences[0] & sentences[1]


@pytest.mark.parametrize(
    "change",
    [str, str.upper, lambda t: f"  {t}\n", lambda t: t.replace(" ", "\n\t")],
    ids=["same", "case", "edges", "blanks"],
)
def test_an_overlap_is_refused_and_both_texts_named(change):
    stolen = replace(CALIBRATION[3], id="p-stolen", text=change(CALIBRATION[3].text))
    with pytest.raises(OptionsError, match=f"'p-stolen' is also calibration text '{CALIBRATION[3].id}'"):
        check_disjoint(CALIBRATION, (*PROBE, stolen))


def test_check_disjoint_lets_different_texts_pass():
    check_disjoint((Text("a", "en", "query", "one text"),), (Text("b", "en", "query", "one text more"),))
    check_disjoint((), PROBE)
    check_disjoint(CALIBRATION, ())


def test_the_digest_follows_texts_and_their_order_and_borders():
    one, two, both = (Text(id_, "en", "query", t) for id_, t in (("1", "a"), ("2", "b"), ("3", "ab")))
    digests = {digest((one, two)), digest((two, one)), digest((both,)), digest((one,))}
    assert len(digests) == 4
    assert digest((replace(one, id="other", lang="de"),)) == digest((one,))
