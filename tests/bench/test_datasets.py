"""Labelled datasets: each layout is read, and what is wrong is refused by file and line."""

import gzip
import json
import lzma
from pathlib import Path

import pytest

from m3_bench.errors import DatasetError
from m3_bench.retrieval.datasets import Labelled, open_dataset

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "data"


def jsonl(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(text.encode()))
    return path


def tsv(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row.split(" ", 3)) + "\n" for row in rows))


def beir(folder: Path, *labels: str, corpus=("d1", "d2", "d3"), queries=("q1", "q2"), end: str = "") -> Path:
    jsonl(folder / f"corpus.jsonl{end}", *({"_id": d, "title": "Title", "text": f"text {d}"} for d in corpus))
    jsonl(folder / f"queries.jsonl{end}", *({"_id": q, "text": f"query {q}"} for q in queries))
    tsv(folder / "qrels" / "test.tsv", "query-id corpus-id score", *labels)
    return folder


def squad(path: Path, *paragraphs: tuple[str, tuple[str, ...]]) -> Path:
    rows = [
        {"context": text, "qas": [{"id": f"{i}.{j}", "question": q} for j, q in enumerate(questions)]}
        for i, (text, questions) in enumerate(paragraphs)
    ]
    path.write_text(json.dumps({"version": "1", "data": [{"title": "t", "paragraphs": rows}]}), encoding="utf-8")
    return path


def found(data: Labelled) -> dict[str, dict[str, int]]:
    """Per query id: grade by document id."""
    pairs = zip(data.queries, data.relevant, strict=True)
    return {query.id: {data.documents[place].id: grade for place, grade in grades.items()} for query, grades in pairs}


@pytest.mark.parametrize("end", ["", ".gz", ".xz"])
def test_beir(tmp_path, end):
    folder = beir(tmp_path, "q1 d2 2", "q1 d3 0", "q2 d1 1", end=end)
    data = open_dataset(folder)
    assert data.layout == "beir"
    assert found(data) == {"q1": {"d2": 2}, "q2": {"d1": 1}}
    assert data.documents[0].text == "Title text d1"
    assert (data.facts.queries, data.facts.documents, data.facts.relevant_pairs) == (2, 3, 2)


def test_gzipped_or_not_is_the_same_dataset(tmp_path):
    plain, packed = beir(tmp_path / "a", "q1 d2 1"), beir(tmp_path / "b", "q1 d2 1", end=".gz")
    assert open_dataset(plain).sha256 == open_dataset(packed).sha256
    assert open_dataset(plain).sha256 != open_dataset(beir(tmp_path / "c", "q1 d3 1")).sha256


def test_queries_of_other_splits_and_without_relevant_documents_are_left_out_and_counted(tmp_path):
    data = open_dataset(beir(tmp_path, "q1 d2 1", "q2 d2 0", queries=("q1", "q2", "q3")))
    assert [query.id for query in data.queries] == ["q1"]
    assert data.notes == (
        "queries without a label in test.tsv, which were left out: 1",
        "queries without a relevant document, which were left out: 1",
    )


def test_unknown_documents_are_named_and_counted(tmp_path):
    folder = beir(tmp_path, "q1 d2 1", "q1 lost 1", "q2 gone 1")
    with pytest.raises(DatasetError) as error:
        open_dataset(folder)
    assert "test.tsv, line 3 names the document 'lost'" in str(error.value)
    assert "2 of 3 labels" in str(error.value)


def test_unknown_queries_are_named(tmp_path):
    with pytest.raises(DatasetError, match=r"line 2 names the query 'q9'.* 1 of 2 labels"):
        open_dataset(beir(tmp_path, "q9 d2 1", "q1 d1 1"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda f: beir(f, "q1 d1 1", corpus=()), "has no documents"),
        (beir, "test.tsv' has no labels"),
        (lambda f: beir(f, "q1 d1 1", queries=()), "has no queries"),
        (lambda f: beir(f, "q9 d1 1"), "line 2 names the query 'q9', which the dataset does not have"),
        (
            lambda f: beir(f, "q1 d1 1", "q1 d1 0"),
            "line 3: the query 'q1' and the document 'd1' have the grade 0 here and 1 in a line before; leave one",
        ),
        (lambda f: beir(f, "q1 d1 0"), "none of its 1 queries has a relevant document"),
        (lambda f: beir(f, "q1 d1 1", corpus=("d1", "d2", "d1")), "document id 'd1' is there twice, as number 1 and 3"),
        (lambda f: beir(f, "q1 d1"), "expected query-id, corpus-id and score between tabs, got 2 cells"),
        (lambda f: beir(f, "q1 d1 high"), "test.tsv, line 2: the score must be a whole number, got 'high'"),
        (lambda f: jsonl(beir(f, "q1 d1 1") / "corpus.jsonl", {"_id": "d1"}), "line 1: text: Field required"),
        (lambda f: jsonl(beir(f, "q1 d1 1") / "corpus.jsonl", {"text": "a"}), "line 1: _id: Field required"),
        (
            lambda f: jsonl(beir(f, "q1 d1 1") / "corpus.jsonl", {"_id": True, "text": "a"}),
            "line 1: _id: Input should be a valid string, got True",
        ),
        (lambda f: jsonl(beir(f, "q1 d1 1") / "corpus.jsonl", ["a"]), "line 1: Input should be an object, got ['a']"),
        (
            lambda f: (beir(f, "q1 d1 1") / "corpus.jsonl").write_text('{"_id": "d1", '),
            "corpus.jsonl, line 1: Invalid JSON: EOF while parsing",
        ),
        (
            lambda f: (beir(f, "q1 d1 1") / "corpus.jsonl").write_bytes(b'{"_id": "a", "text": ""}\n"\xff"'),
            "line 2 is not UTF-8 text",
        ),
        (lambda f: (beir(f, "q1 d1 1") / "qrels/test.tsv").unlink(), "expected corpus.jsonl, queries.jsonl and qrels"),
    ],
)
def test_a_bad_beir_folder_is_refused(tmp_path, build, message):
    build(tmp_path)
    with pytest.raises(DatasetError) as error:
        open_dataset(tmp_path)
    assert message in str(error.value)


def test_half_of_a_surrogate_pair_is_refused(tmp_path):
    beir(tmp_path, "q1 d1 1")
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "a \\ud83d"}\n')
    with pytest.raises(DatasetError, match=r"queries.jsonl, line 1: Invalid JSON: .*surrogate|hex escape"):
        open_dataset(tmp_path)


def test_a_cut_off_gz_is_refused(tmp_path):
    folder = beir(tmp_path, "q1 d1 1", end=".gz")
    packed = (folder / "corpus.jsonl.gz").read_bytes()
    (folder / "corpus.jsonl.gz").write_bytes(packed[:-12])
    with pytest.raises(DatasetError, match=r"cannot read '.*corpus.jsonl.gz'"):
        open_dataset(folder)


@pytest.mark.parametrize("corpus", ["miracl-corpus-v1.0-xx", "miracl-v1.0-xx"])
def test_miracl(tmp_path, corpus):
    folder = tmp_path / "miracl-v1.0-xx"
    tsv(folder / "topics" / "topics.miracl-v1.0-xx-dev.tsv", "1 where", "2 when")
    tsv(folder / "topics" / "topics.miracl-v1.0-xx-train.tsv", "9 never")
    tsv(folder / "qrels" / "qrels.miracl-v1.0-xx-dev.tsv", "1 Q0 7#1 1", "1 Q0 7#0 0", "2 Q0 8#0 1")
    jsonl(tmp_path / corpus / "docs-0.jsonl.gz", {"docid": "7#0", "title": "T", "text": "a"})
    jsonl(tmp_path / corpus / "docs-10.jsonl.gz", {"docid": "8#0", "title": "T", "text": "c"})
    jsonl(tmp_path / corpus / "docs-2.jsonl.gz", {"docid": "7#1", "title": "T", "text": "b"})
    data = open_dataset(folder)
    assert data.layout == "miracl"
    assert [item.id for item in data.documents] == ["7#0", "7#1", "8#0"]
    assert found(data) == {"1": {"7#1": 1}, "2": {"8#0": 1}}
    with pytest.raises(DatasetError, match="is not MIRACL's layout"):
        open_dataset(folder, split="testB")


def test_mldr(tmp_path):
    jsonl(tmp_path / "corpus.jsonl", {"docid": "doc-1", "text": "long"}, {"docid": "doc-2", "text": "longer"})
    row = {"query_id": "q-1", "query": "what", "positive_passages": [{"docid": "doc-2", "text": "longer"}]}
    jsonl(tmp_path / "test.jsonl.gz", row | {"negative_passages": [{"docid": "doc-1", "text": "long"}]})
    assert open_dataset(tmp_path).layout == "mldr"
    assert found(open_dataset(tmp_path)) == {"q-1": {"doc-2": 1}}
    jsonl(tmp_path / "dev.jsonl", row | {"positive_passages": ["doc-2"]})
    with pytest.raises(DatasetError, match=r"dev.jsonl, line 1: positive_passages\[0\]: Input should be an object"):
        open_dataset(tmp_path, split="dev")


def test_squad_paragraphs_of_one_text_are_one_document(tmp_path):
    path = squad(tmp_path / "a.json", ("one", ("q0",)), ("two", ("q1", "q2")), ("one", ("q3",)), ("three", ()))
    data = open_dataset(path)
    assert data.layout == "squad"
    assert [item.text for item in data.documents] == ["one", "two", "three"]
    with pytest.raises(DatasetError, match="of the layout squad, which has no splits"):
        open_dataset(path, split="dev")
    assert found(data) == {"0.0": {"p0": 1}, "1.0": {"p1": 1}, "1.1": {"p1": 1}, "2.0": {"p0": 1}}
    assert data.notes == ("1 paragraphs have the text of an earlier one and are one document with it",)


def test_a_folder_of_one_squad_file_is_that_file_and_of_two_is_refused(tmp_path):
    squad(tmp_path / "a.json", ("one", ("q?",)))
    assert open_dataset(tmp_path).name == "a.json"
    squad(tmp_path / "b.json", ("one", ("q?",)))
    with pytest.raises(DatasetError, match=r"folder with 2 datasets; name one of them: .*a\.json, .*b\.json"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"data": []}, "has no documents"),
        ({"data": [{"paragraphs": {}}]}, "data[0].paragraphs: Input should be a valid array, got {}"),
        ({"data": [{"paragraphs": [1]}]}, "data[0].paragraphs[0]: Input should be an object, got 1"),
        ({"data": [{"paragraphs": [{"context": "a"}]}]}, "data[0].paragraphs[0].qas: Field required"),
        ({"data": [{"paragraphs": [{"context": "a", "qas": [{}]}]}]}, "paragraphs[0].qas[0].id: Field required"),
        (
            {"data": [{"paragraphs": [{"context": 1, "qas": []}]}]},
            "paragraphs[0].context: Input should be a valid string, got 1",
        ),
        ({"rows": []}, 'a.json: data: Field required; expected SQuAD\'s {"data": [{"paragraphs": […]}, …]}'),
    ],
)
def test_a_bad_squad_file_is_refused(tmp_path, value, message):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DatasetError) as error:
        open_dataset(path)
    assert message in str(error.value)


def test_fine_tuning_lines_are_a_dataset(tmp_path):
    path = jsonl(
        tmp_path / "train.jsonl",
        {"query": "a", "pos": ["A", "B"], "neg": ["C"]},
        {"query": "b", "pos": ["B"], "neg": []},
        {"query": "c", "pos": ["C"], "neg": [""]},
    )
    data = open_dataset(path)
    assert [item.text for item in data.documents] == ["A", "B", "C"]
    assert list(data.relevant) == [{0: 1, 1: 1}, {2: 1}]
    assert [query.id for query in data.queries] == ["1", "3"]
    assert data.notes[0].startswith("line 2 was left out: neg: List should have at least 1 item")


def test_a_path_that_is_not_there_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="there is no dataset at"):
        open_dataset(tmp_path / "no")
    with pytest.raises(DatasetError, match="is of no known layout"):
        open_dataset(tmp_path)


def test_limits_keep_what_is_relevant_and_the_order(tmp_path):
    corpus = tuple(f"d{i}" for i in range(8))
    folder = beir(tmp_path, "q1 d5 1", "q2 d6 1", "q3 d7 1", corpus=corpus, queries=("q1", "q2", "q3"))
    data = open_dataset(folder, queries=2, documents=4)
    assert [item.id for item in data.documents] == ["d0", "d1", "d5", "d6"]
    assert found(data) == {"q1": {"d5": 1}, "q2": {"d6": 1}}
    assert data.notes[0] == "only the first 2 of 3 queries"
    assert data.notes[1].startswith("only 4 of 8 documents")
    assert [item.id for item in open_dataset(folder, documents=1).documents] == ["d5", "d6", "d7"]
    assert open_dataset(folder, queries=3, documents=8).notes == ()


def test_the_committed_set_is_in_order():
    data = open_dataset(COMMITTED / "multilingual")
    languages = {item.id.split("-")[0] for item in data.documents}
    assert len(languages) >= 8
    assert len(data.documents) == 63
    assert len(data.queries) == 72
    assert data.notes == ()
    assert len({item.text for item in data.documents}) == 63
    cross_lingual = [grades for query, grades in found(data).items() if query.startswith("x-")]
    assert len(cross_lingual) == 14
    assert all(query.startswith("x-") or next(iter(g))[:2] == query[:2] for query, g in found(data).items())
