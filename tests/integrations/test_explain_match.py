"""The example's picture, drawn of a real encoding."""

import runpy
from pathlib import Path
from xml.etree import ElementTree

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
