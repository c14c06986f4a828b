"""Calibration and probe texts of the user's own: what is read, what is refused, and what is warned of."""

import json
from pathlib import Path

import pytest

from m3_export.calibration.texts import calibration_texts, chosen_texts, probe_texts, read_texts
from m3_export.errors import OptionsError
from m3_runtime.errors import InputError


def jsonl(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_without_files_they_are_ours():
    chosen = chosen_texts(None, None)
    assert (chosen.calibration, chosen.probe, chosen.warnings) == (calibration_texts(), probe_texts(), ())


def test_jsonl_and_plain_lines(tmp_path: Path):
    given = read_texts(jsonl(tmp_path / "a.jsonl", {"text": "Grüß Gott", "lang": "de"}, {"text": "你好"}), "texts")
    assert [(text.text, text.lang) for text in given] == [("Grüß Gott", "de"), ("你好", "cjk")]
    (tmp_path / "a.txt").write_text("one\n\n два \n", encoding="utf-8")
    assert [text.lang for text in read_texts(tmp_path / "a.txt", "texts")] == ["latin", "cyrillic"]
    (tmp_path / "b.jsonl").write_text('\ufeff{"text": "one\u2028line"}\n{"text": "two"}\n', "utf-8")
    assert [text.text for text in read_texts(tmp_path / "b.jsonl", "texts")] == ["one\u2028line", "two"]


def test_one_language_is_warned_of_and_two_are_not(tmp_path: Path):
    one = jsonl(tmp_path / "one.jsonl", {"text": "only English"}, {"text": "and more of it"})
    (warning,) = chosen_texts(one, None).warnings
    assert "all 2 calibration texts are in one language or script (latin)" in warning
    two = jsonl(tmp_path / "two.jsonl", {"text": "English", "lang": "en"}, {"text": "Deutsch", "lang": "de"})
    assert chosen_texts(two, None).warnings == ()


def test_overlap_is_refused_by_name(tmp_path: Path):
    probe = jsonl(tmp_path / "probe.jsonl", {"text": "something new"}, {"text": calibration_texts()[3].text.upper()})
    with pytest.raises(OptionsError, match=r"probe text '2' is also calibration text"):
        chosen_texts(None, probe)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it holds no texts"),
        ("\n  \n", "it holds no texts"),
        ('{"text": "fine"}\nnot json\n', "line 2: not JSON"),
        ('{"text": ""}\n', 'line 1: expected an object with a "text"'),
        ('["text"]\n', 'line 1: expected an object with a "text"'),
        ('{"body": "x"}\n', 'line 1: expected an object with a "text"'),
    ],
)
def test_what_holds_no_text_is_refused(tmp_path: Path, content: str, words: str):
    path = tmp_path / "texts.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(OptionsError, match=r"calibration texts .*texts\.jsonl") as caught:
        chosen_texts(path, None)
    assert words in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(OptionsError, match=r"missing\.txt"):
        chosen_texts(None, tmp_path / "missing.txt")


def test_half_a_surrogate_pair_is_refused_with_its_line(tmp_path: Path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "\\ud83d half an emoji"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"probe texts .*texts\.jsonl, line 2 has a lone surrogate \(U\+D83D\)"):
        chosen_texts(None, path)


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.parquet", "a.txt.gz", "a.jsonl.zst"])
def test_a_file_of_another_format_is_not_read_as_lines(tmp_path: Path, name: str):
    (tmp_path / name).write_text("id,text\n1,one\n")
    with pytest.raises(OptionsError, match=r"expected a text on every line, or JSONL, unpacked"):
        read_texts(tmp_path / name, "texts")
