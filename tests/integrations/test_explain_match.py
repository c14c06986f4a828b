"""The example's picture, drawn of a real encoding."""

import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "explain_match.py"))
QUERY, PASSAGE = "a <small> query", "the passage & its words"


def test_a_cell_for_every_pair_of_tokens_and_a_frame_in_every_row(encoder):
    root = ElementTree.fromstring(EXAMPLE["picture"](encoder, QUERY, PASSAGE))
    boxes = [one for one in root.findall(".//{*}rect") if one.get("fill-opacity")]
    rows, columns = (len(encoder.encode(text, return_colbert_vecs=True).colbert_vecs) for text in (QUERY, PASSAGE))
    assert len(boxes) == rows * columns + (rows - 1) + (columns - 1)
    assert sum(one.get("stroke") is not None for one in boxes) == rows
    scores = encoder.compute_score((QUERY, PASSAGE))
    words = [one.text for one in root.findall(".//{*}text")]
    assert words[0] == f"dense {scores['dense']:.3f}   sparse {scores['sparse']:.3f}   ColBERT {scores['colbert']:.3f}"
    assert words.count("</s>") == 2


@pytest.fixture
def explained(tmp_path, monkeypatch, capfd):
    """Run a command line in an empty folder: its exit code, and standard error."""
    monkeypatch.chdir(tmp_path)

    def explained(*words: str | Path) -> tuple[int, str]:
        code = EXAMPLE["main"]([str(word) for word in words])
        return code, capfd.readouterr().err

    return explained


def test_a_picture_is_replaced_only_if_asked(tiny_bundle, explained):
    picture = Path("match.svg")
    assert explained(tiny_bundle, QUERY, PASSAGE) == (0, "")
    drawn = picture.read_bytes()
    ElementTree.fromstring(drawn)
    picture.write_text("mine")
    said = "explain_match: 'match.svg' exists; choose another file, or pass --force to replace it\n"
    assert explained(tiny_bundle, QUERY, PASSAGE) == (2, said)
    assert picture.read_text() == "mine"
    assert explained(tiny_bundle, QUERY, PASSAGE, "--force") == (0, "")
    assert picture.read_bytes() == drawn


def test_mistakes_are_said_in_one_line_and_leave_no_file(tiny_bundle, reranker_bundle, explained):
    for words, expected in (
        ((reranker_bundle, QUERY, PASSAGE), "expected an encoder's"),
        (("nowhere", QUERY, PASSAGE), "nowhere"),
        ((tiny_bundle, QUERY, PASSAGE, "--variant", "onnx-int3"), "onnx-int3"),
        ((tiny_bundle, QUERY, PASSAGE, "-o", "nodir/x.svg"), "cannot write 'nodir/x.svg': No such file or directory"),
        ((tiny_bundle, "", PASSAGE), "the query is empty"),
        ((tiny_bundle, QUERY, " \u200b"), "the passage is empty"),
    ):
        code, said = explained(*words)
        assert code == 2, said
        assert said.startswith("explain_match: ")
        assert expected in said
        assert "Traceback" not in said
    assert list(Path().iterdir()) == []
