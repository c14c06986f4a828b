"""The example, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "rag_search.py"
METHODS = ["TF-IDF", "BM25", "static", "dense", "sparse", "ColBERT", "hybrid", "reranked"]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLE, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def answers(page: str) -> dict[str, dict[str, list[str]]]:
    """Question to method to the names found, best first."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in page.splitlines():
        words = line.split()
        if line and not line.startswith(" "):
            found[line] = {}
        elif words and words[0] in METHODS:
            found[list(found)[-1]][words[0]] = [] if words[1:] == ["nothing"] else words[1::2]
    return found


@pytest.fixture
def corpus(tmp_path, library):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in library), "utf-8")
    return path


def test_english_and_chinese_side_by_side(mini_bundle, mini_reranker_bundle):
    done = run(mini_bundle, "--reranker", mini_reranker_bundle)
    assert done.returncode == 0, done.stderr
    found = answers(done.stdout)
    assert [list(methods) for methods in found.values()] == [METHODS] * 4
    english, across, chinese, _ = found.values()
    assert {names[0] for method, names in english.items() if method != "static"} == {"en-k2"}
    assert "en-k2" in english["static"]  # an average of words does not know which mountain is the second
    assert {names[0] for names in chinese.values()} == {"zh-huozi"}
    assert "ru-baikal" not in across["BM25"]  # no word is shared with a passage in Russian
    assert across["dense"][0] == "ru-baikal"
    assert "context: 北宋庆历年间" in done.stdout


def test_a_kept_store_is_taken_again(mini_bundle, tiny_bundle, corpus, tmp_path):
    asked = ["How do bees tell each other where flowers are?", "--corpus", corpus, "--store", tmp_path / "store"]
    first = run(mini_bundle, *asked)
    assert first.returncode == 0, first.stderr
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["store.npz"]
    written = (tmp_path / "store" / "store.npz").stat().st_mtime_ns
    again = run(mini_bundle, *asked)
    assert again.stdout == first.stdout
    assert next(iter(answers(again.stdout).values()))["hybrid"][0] == "en-honeybee"
    assert (tmp_path / "store" / "store.npz").stat().st_mtime_ns == written

    assert list(next(iter(answers(again.stdout).values()))) == METHODS[:-1]  # no reranker is given
    no_reranker = run(mini_bundle, *asked, "--reranker", mini_bundle)
    assert no_reranker.returncode == 1
    assert "is an encoder's bundle (heads: dense, sparse, colbert), expected a reranker's" in no_reranker.stderr

    other_model = run(tiny_bundle, *asked)
    assert other_model.returncode == 1
    assert "rag_search: the index holds vectors of space" in other_model.stderr

    corpus.write_text(json.dumps({"_id": "new", "text": "Bees dance."}), "utf-8")
    other_passages = run(mini_bundle, *asked)
    assert other_passages.returncode == 1
    assert "holds other passages" in other_passages.stderr


def test_help_teaches():
    done = run("--help")
    assert "python examples/rag_search.py BUNDLE --corpus docs.jsonl" in done.stdout
