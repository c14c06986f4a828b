"""The example, as a user runs it."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "rag_search.py"))
METHODS = ["TF-IDF", "BM25", "static", "dense", "sparse", "ColBERT", "hybrid", "reranked"]


@pytest.fixture
def run(capfd):
    """Run a command line: its exit code, standard output, standard error."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        code = EXAMPLE["main"]([str(word) for word in words])
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def refused(run):
    """Run a command line with a mistake: the one line that says it, without the command's name."""

    def refused(*words: str | Path) -> str:
        code, out, said = run(*words)
        assert (code, out) == (2, ""), said
        (line,) = said.splitlines()
        return line.removeprefix("rag_search: ")

    return refused


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


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def corpus(tmp_path, library):
    return jsonl(tmp_path / "corpus.jsonl", *({"_id": name, "text": text} for name, text in library))


def test_english_and_chinese_side_by_side(mini_bundle, mini_reranker_bundle, run):
    code, page, said = run(mini_bundle, "--reranker", mini_reranker_bundle)
    assert code == 0, said
    found = answers(page)
    assert [list(methods) for methods in found.values()] == [METHODS] * 4
    english, lake, chinese, _ = found.values()
    assert {names[0] for method, names in english.items() if method != "static"} == {"en-k2"}
    assert "en-k2" in english["static"]  # an average of words does not know which mountain is the second
    assert {names[0] for names in chinese.values()} == {"zh-huozi"}
    assert "ru-baikal" not in lake["BM25"]  # no word is shared with a passage in Russian
    assert lake["dense"][0] == "ru-baikal"
    assert [methods["hybrid"][0] for methods in found.values()] == ["en-k2", "ru-baikal", "zh-huozi", "ru-gagarin"]
    assert "context: 北宋庆历年间" in page


def test_weights_of_the_hybrid(tiny_bundle, tmp_path, run, refused):
    corpus = jsonl(tmp_path / "corpus.jsonl", *({"id": n, "text": f"{n} of the {n} lakes"} for n in range(9)))
    asked = [tiny_bundle, "Which lake is number 7?", "--corpus", corpus, "--store", tmp_path / "store", "--weights"]
    for weights, method in (("1,0", "dense"), ("0,1,0", "sparse"), ("0,0,1", "ColBERT")):
        (found,) = answers(run(*asked, weights)[1]).values()
        assert found["hybrid"] == found[method]
    assert refused(*asked, "1,x") == "--weights 1,x: expected numbers between commas, as in 1,0.3,1"


def test_a_kept_store_is_taken_again(mini_bundle, tiny_bundle, corpus, tmp_path, run, refused):
    store = tmp_path / "store"
    asked = ["How do bees tell each other where flowers are?", "--corpus", corpus, "--store", store]
    first = run(mini_bundle, *asked)
    assert first[0] == 0, first
    assert [path.name for path in store.iterdir()] == ["store.npz"]
    written = (store / "store.npz").stat().st_mtime_ns
    again = run(mini_bundle, *asked)
    assert again == first
    (found,) = answers(again[1]).values()
    assert found["hybrid"][0] == "en-honeybee"
    assert list(found) == METHODS[:-1]  # no reranker is given
    assert (store / "store.npz").stat().st_mtime_ns == written

    assert "the index holds vectors of space" in refused(tiny_bundle, *asked)
    jsonl(corpus, {"_id": "new", "text": "Bees dance."})
    assert "holds other passages" in refused(mini_bundle, *asked)


def test_passages_are_called_by_either_key_or_by_their_number(tiny_bundle, tmp_path, run):
    for key, name in (("_id", "bees"), ("id", "bees"), ("docid", "1")):
        corpus = jsonl(tmp_path / "corpus.jsonl", {key: "bees", "text": "Bees dance."})
        (found,) = answers(run(tiny_bundle, "Bees?", "--corpus", corpus)[1]).values()
        assert found["BM25"] == [name]


def test_an_empty_passage_is_not_reranked(tiny_bundle, reranker_bundle, tmp_path, run):
    for texts, names in ((("", "Bees dance."), ["1"]), (("", " "), [])):
        corpus = jsonl(tmp_path / "corpus.jsonl", *({"id": i, "text": text} for i, text in enumerate(texts)))
        (found,) = answers(run(tiny_bundle, "Bees?", "--corpus", corpus, "--reranker", reranker_bundle)[1]).values()
        assert found["reranked"] == names


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "cannot read '{path}'"),
        ("", "'{path}' has no passages"),
        ("Bees dance.\n", "{path}:1: not JSON"),
        ('{"id": "a", "text": "Bees"}\n{"id": "b", "txt": "Bees"}\n', "{path}:2: the object has no 'text'"),
        ('{"_id": "a", "text": "Bees"}\n{"text": "Bees"}\n', "{path}:2: the object has no '_id'"),
        ('{"id": 1, "text": "Bees"}\n{"id": "1", "text": "Lakes"}\n', "'{path}' has the id '1' twice"),
    ],
)
def test_a_wrong_corpus(rows, said, tiny_bundle, tmp_path, refused):
    path = tmp_path / "corpus.jsonl"
    if rows is not None:
        path.write_text(rows)
    assert refused(tiny_bundle, "--corpus", path).startswith(said.format(path=path))


def test_an_empty_question(tiny_bundle, refused):
    assert refused(tiny_bundle, "Bees?", " ") == "a question is empty; ask one in words"


@pytest.mark.parametrize("content", ["junk", "", "pickle", "array", "cut", "other"])
def test_what_is_no_store_is_not_taken_for_one(content, tiny_bundle, corpus, tmp_path, run, refused):
    asked = [tiny_bundle, "Bees?", "--corpus", corpus, "--store", tmp_path]
    store = tmp_path / "store.npz"
    if content == "cut":
        run(*asked)
        store.write_bytes(store.read_bytes()[:-100])
    elif content in ("junk", ""):
        store.write_text(content)
    else:
        with store.open("wb") as file:
            {
                "pickle": lambda: np.savez(file, made_by=np.array([None])),
                "array": lambda: np.save(file, np.zeros(3)),
                "other": lambda: np.savez(file, dense=np.zeros(3)),
            }[content]()
    said = refused(*asked)
    assert said.startswith(f"{str(store)!r} is no store that this example has written; delete it")
    assert "pickle" not in said


def test_a_store_that_is_no_folder(tiny_bundle, corpus, refused):
    said = refused(tiny_bundle, "--corpus", corpus, "--store", corpus)
    assert said == f"cannot make the folder --store {str(corpus)!r}: File exists"


def test_models_of_the_other_kind(tiny_bundle, reranker_bundle, refused):
    assert "expected an encoder's" in refused(reranker_bundle)
    assert "expected a reranker's" in refused(tiny_bundle, "--reranker", tiny_bundle)


def test_help_teaches(run, capfd):
    with pytest.raises(SystemExit):
        run("--help")
    assert "python examples/rag_search.py BUNDLE --corpus docs.jsonl" in capfd.readouterr().out
