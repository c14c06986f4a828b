"""The page that `make demo` ends with."""

import runpy
from pathlib import Path

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "demo.py"))


def test_a_page_with_all_heads(tiny_bundle, capfd):
    assert EXAMPLE["main"]([str(tiny_bundle)]) == 0
    page = capfd.readouterr().out
    for heading in ("dense scores", "sparse scores", "ColBERT scores", "lexical weights", "across languages"):
        assert f"\n{heading}" in page


def test_a_wrong_bundle_is_said_in_a_line(reranker_bundle, tmp_path, capfd):
    for bundle, expected in ((reranker_bundle, "expected an encoder's"), (tmp_path / "nowhere", "nowhere")):
        assert EXAMPLE["main"]([str(bundle)]) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("demo: ")
        assert expected in line
