"""Texts and pairs out of files, as `encode` and `score` read them; bulk jobs: tests/bulk/test_sources.py."""

import gzip
import io
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3_runtime import InputError
from m3_runtime.io.readers import PairRow, SourceFormat, read_pairs, read_texts


def test_every_format_gives_the_same_texts(tmp_path):
    rows = [("a", "one"), ("7", "二"), ("x", "")]
    lines, objects, table = tmp_path / "a.txt", tmp_path / "a.jsonl", tmp_path / "a.parquet"
    lines.write_text("one\n二\n\n", encoding="utf-8")
    objects.write_text(
        '{"id": "a", "text": "one"}\n\n{"id": 7, "text": "二"}\n{"text": "", "id": "x"}\n', encoding="utf-8"
    )
    pq.write_table(pa.table({"id": [name for name, _ in rows], "text": [text for _, text in rows]}), table)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(objects.read_bytes()))
    assert [(row.id, row.text) for row in read_texts(str(lines))] == [("1", "one"), ("2", "二"), ("3", "")]
    for path in (objects, table, packed):
        assert [(row.id, row.text) for row in read_texts(str(path))] == rows


def test_texts_without_ids_are_called_by_their_number(tmp_path):
    objects, table = tmp_path / "a.ndjson", tmp_path / "a.pq"
    objects.write_text('"one"\n\n{"text": "two"}\n')
    pq.write_table(pa.table({"text": ["one", "two"]}), table)
    assert [row.id for row in read_texts(str(objects))] == ["1", "3"]
    assert [row.id for row in read_texts(str(table))] == ["1", "2"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"text": "a", "id": true}', "the id must be a string or an integer, got bool"),
        ('{"text": "a", "id": null}', "the id must be a string or an integer, got null"),
        ('{"text": "a", "id": "\\ud800"}', "the id has a lone surrogate"),
        ('{"text": ["a"]}', "the text must be a str, got list"),
        ("plain text", "for plain text pass --input-format lines"),
    ],
)
def test_a_bad_row_is_an_error_that_names_it(tmp_path, row, reason):
    path = tmp_path / "a.jsonl"
    path.write_text(f'"before"\n{row}\n')
    texts = read_texts(str(path))
    assert next(texts).text == "before"
    with pytest.raises(InputError, match=reason) as caught:
        next(texts)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_text_that_is_null_in_a_table_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", None]}), path)
    with pytest.raises(InputError, match=r"a\.parquet:2: the text is null"):
        list(read_texts(str(path)))


def test_standard_input_is_read_like_a_file(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffeins\nzwei".encode())))
    assert [(row.id, row.text, row.place) for row in read_texts("-")] == [
        ("1", "eins", "standard input:1"),
        ("2", "zwei", "standard input:2"),
    ]


@pytest.mark.parametrize("read", [read_texts, read_pairs])
def test_what_cannot_be_opened_is_named(tmp_path, read):
    for path in (tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(InputError, match=f"cannot read '{path}'"):
            list(read(str(path)))


def test_pairs_of_lines_and_of_objects(tmp_path):
    lines, objects = tmp_path / "a.tsv", tmp_path / "a.jsonl"
    lines.write_text("q\tp\n\nq2\tp2\twith a tab\n")
    objects.write_text('{"query": "q", "passage": "p"}\n\n{"query": "q2", "passage": "p2\\twith a tab"}\n')
    for path in (lines, objects):
        assert list(read_pairs(str(path))) == [
            PairRow("q", "p", f"{path}:1"),
            PairRow("q2", "p2\twith a tab", f"{path}:3"),
        ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"no tab", "expected a query, a tab and a passage, got 'no tab'"),
        (b"\xff\t\xff", "not UTF-8 text"),
        (b'{"query": "q"}', 'expected an object with "query" and "passage"'),
        (b'{"query": 1, "passage": "p"}', "the query must be a str, got int"),
        (b'{"query": "q", "passage": "\\udc00"}', "the passage has a lone surrogate"),
    ],
)
def test_a_bad_pair_is_named(tmp_path, line, reason):
    path = tmp_path / "pairs"
    path.write_bytes(line + b"\n")
    chosen = SourceFormat.JSONL if line.startswith(b"{") else SourceFormat.LINES
    with pytest.raises(InputError, match=reason) as caught:
        list(read_pairs(str(path), chosen))
    assert str(caught.value).startswith(f"{path}:1: ")


def test_pairs_are_not_read_from_tables(tmp_path):
    with pytest.raises(InputError, match="is Parquet"):
        list(read_pairs(str(tmp_path / "pairs.parquet")))
