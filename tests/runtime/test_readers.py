"""Texts and pairs out of files, as `encode` and `score` read them; bulk jobs: tests/bulk/test_sources.py."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3_runtime import InputError
from m3_runtime.errors import FileFormatError
from m3_runtime.io.formats import SourceFormat
from m3_runtime.io.readers import read_pairs, read_texts
from m3_runtime.io.rows import Columns, PairRow


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
        ("plain text", "plain text is read as lines, from a .txt file"),
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


def test_a_pipe_whose_name_does_not_say_enough(tmp_path):
    os.mkfifo(tmp_path / "a.json")  # looking into it would take its beginning away
    with pytest.raises(InputError, match=r"is a pipe.*write it to a file"):
        next(read_texts(str(tmp_path / "a.json")))


def test_standard_input_that_cannot_be_read(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(b"eins"))))
    with pytest.raises(InputError, match=r"^standard input is gzip; unpack it first"):
        list(read_texts("-"))
    with pytest.raises(InputError, match="Parquet cannot be read from standard input"):
        list(read_texts("-", SourceFormat.PARQUET))


@pytest.mark.parametrize("read", [read_texts, read_pairs])
def test_what_cannot_be_opened_is_named(tmp_path, read):
    for path in (tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(InputError, match=f"cannot read '{path}'"):
            list(read(str(path)))


def test_pairs_of_lines_and_of_objects(tmp_path):
    lines, objects = tmp_path / "a.tsv", tmp_path / "a.jsonl"
    lines.write_text("q\tp\n\nq2\tp2\n")
    objects.write_text('{"query": "q", "passage": "p"}\n\n{"query": "q2", "passage": "p2\\twith a tab"}\n')
    for path, second in ((lines, "p2"), (objects, "p2\twith a tab")):
        assert list(read_pairs(str(path))) == [PairRow("q", "p", f"{path}:1"), PairRow("q2", second, f"{path}:3")]


def test_pairs_behind_a_header(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('\ufeffid\tpassage\tquery\n7\t"p\nof two lines"\tq\n\n8\tp2\tq2\n')
    assert list(read_pairs(str(path))) == [
        PairRow("q", "p\nof two lines", f"{path}:2"),
        PairRow("q2", "p2", f"{path}:5"),
    ]
    path.write_text("query\tpassage\nq\tp\nq2\n")
    with pytest.raises(InputError, match=r"a.tsv:3: expected 2 cells as in the header, got 1"):
        list(read_pairs(str(path)))
    path.write_bytes(b"query\tpassage\nq\t\xff\n")
    with pytest.raises(InputError, match=r"a.tsv:2: not UTF-8 text"):
        list(read_pairs(str(path)))
    path.write_text("Query\tPassage\nq\tp\n")
    with pytest.raises(FileFormatError, match="the columns of pairs are query and passage, in lower case"):
        list(read_pairs(str(path)))
    assert len(list(read_pairs(str(path), SourceFormat.LINES))) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"no tab", "expected a query, a tab and a passage, got 'no tab'"),
        (b"q\tp\t1", "expected a query, a tab and a passage, got 3 columns; texts with tabs go into JSONL"),
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
    with pytest.raises(InputError, match="is parquet; pairs are read from"):
        list(read_pairs(str(tmp_path / "pairs.parquet")))


def cells(path, *, source_format=None, columns=Columns()):  # noqa: B008 - frozen
    return [(row.id, row.text) for row in read_texts(str(path), source_format, columns)]


@pytest.mark.parametrize(
    ("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t"), ("a.tsv", "|")]
)
def test_records_with_a_header(tmp_path, name, delimiter):
    path = tmp_path / name
    lines = [["id", "text"], ["1", '"two\nlines, and ""quotes"""'], ["2", '"a; b\tc|d"'], [], ["3", "二"]]
    path.write_text("\ufeff" + "\r\n".join(delimiter.join(line) for line in lines), encoding="utf-8", newline="")
    assert cells(path) == [("1", 'two\nlines, and "quotes"'), ("2", "a; b\tc|d"), ("3", "二")]
    assert [row.place for row in read_texts(str(path))] == [f"{path}:2", f"{path}:4", f"{path}:6"]
    assert cells(path, columns=Columns("id", "text"))[2] == ("二", "3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,body\n1,a\n", "no column 'text'; the first line is the header, and its columns are: id, body"),
        (b"text,text\na,b\n", "has two columns 'text'"),
        (b"id,text\n1,a\n2,a,b\n", "a.csv:3: expected 2 cells as in the header, got 3"),
        (b'id,text\n1,a\n2,"b\n', "the record in line 3 cannot be read"),
        (b"id,text\n1,\xff\n", "a.csv:2: not UTF-8 text"),
    ],
)
def test_records_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        cells(path)
    assert message in str(caught.value)


VALUES = [{"id": "a", "text": "eins"}, {"id": 7, "text": "a [b] {c}", "more": [1, {"x": []}]}, "bare", {"text": "二"}]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_that_is_no_lines(tmp_path, indent):
    array, values = tmp_path / "a.json", tmp_path / "b.json"
    array.write_text(json.dumps(VALUES, indent=indent, ensure_ascii=False))
    values.write_text("\n".join(json.dumps(value, indent=indent) for value in VALUES))
    expected = [("a", "eins"), ("7", "a [b] {c}"), ("3", "bare"), ("4", "二")]
    assert cells(array) == cells(values) == expected


def test_a_large_array_is_read_value_by_value(tmp_path):
    path = tmp_path / "a.json"
    texts = [f"{number} " * (number % 700) for number in range(2000)]
    path.write_text(json.dumps(texts, indent=1))
    assert [text for _, text in cells(path)] == texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, {"text": ', "after value 1: not JSON"),
        ('[{"text": "a"}', "after value 1: the array goes on without a comma, or does not end"),
        ('[{"text": "a"},]', "after value 1: an element is missing"),
        ('["a"] ["b"]', "after value 1: there is something behind the array"),
        ('[\n["a"]]', "a.json:1: expected a JSON object, got list"),
        ('{\n"texts": ["a"]}', "a.json:1: the object has no 'text'"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        cells(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", ['[{"text": "a"}]', '{\n  "text": "a"\n}\n', '\n[\n"a"\n]'])
def test_json_that_is_called_lines_is_named(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=r"no JSON Lines.*let its name end in \.json$"):
        cells(path)
    assert [text for _, text in cells(path, source_format=SourceFormat.JSON)] == ["a"]


def packed(data: bytes, ending: str) -> bytes:
    match ending:
        case ".gz":
            return gzip.compress(data)
        case ".bz2":
            return bz2.compress(data)
        case ".xz":
            return lzma.compress(data)
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, {".zst": "zstd", ".lz4": "lz4"}[ending]) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst", ".lz4"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
def test_packed_files(tmp_path, name, ending):
    texts = [f"text {number}" for number in range(3000)]
    data = {
        "a.txt": "\n".join(texts),
        "a.jsonl": "\n".join(map(json.dumps, texts)),
        "a.json": json.dumps(texts, indent=1),
        "a.csv": "text\n" + "\n".join(texts),
    }[name].encode()
    path = tmp_path / (name + ending)
    path.write_bytes(packed(data, ending))
    assert [text for _, text in cells(path)] == texts
    path.write_bytes(packed(data, ending) * 2 if name == "a.txt" else packed(data, ending)[:-20])
    if name == "a.txt":
        assert len(cells(path)) == 5999
    else:
        with pytest.raises(InputError, match="cannot read"):
            cells(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("eins\n".encode("utf-16"), "is UTF-16; .* iconv -f UTF-16 -t UTF-8"),
        ("eins\n".encode("utf-16-le"), "is UTF-16, or no text at all"),
        ("eins\n".encode("utf-32"), "is UTF-32"),
        ("text\neins\n".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8"),
        ("text\neins\n".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
        (gzip.compress(b"eins", mtime=0), "is gzip; let its name end in .gz"),
        (bz2.compress(b"eins"), "is bzip2; let its name end in .bz2"),
        (b"a.txt".ljust(257, b"\0") + b"ustar\0", "is a tar archive; unpack it"),
        (b"Obj\x01\x04\x14avro.codec", "is an Avro file; write it as Parquet"),
        (b"PK\x03\x04....", "is a zip archive; unpack it"),
        (b"PAR1\x15...", "is Parquet"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.txt.gz"])
def test_content_that_is_not_what_the_name_says(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(InputError, match=message):
        cells(path)


def test_a_name_that_says_nothing_is_refused(tmp_path):
    for name in ("a.md", "part-00000", "a.arrow", "a.jsonl.snappy", "a.tar.gz"):
        path = tmp_path / name
        path.write_text("eins\n")
        with pytest.raises(InputError, match=r"does not say how it is read; known endings are .*Rename it$"):
            cells(path)
        with pytest.raises(InputError, match="does not say how it is read"):
            list(read_pairs(str(path)))
    assert cells(tmp_path / "a.md", source_format=SourceFormat.LINES) == [("1", "eins")]


def test_fields_by_their_path(tmp_path):
    objects, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    rows = [{"chunk": {"text": "eins", "n": {"id": 1}}}, {"chunk": {"text": "zwei", "n": {"id": 2}}}]
    objects.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), table)
    columns = Columns("chunk.text", "chunk.n.id")
    assert cells(objects, columns=columns) == cells(table, columns=columns) == [("1", "eins"), ("2", "zwei")]


@pytest.mark.parametrize(
    "kind", [pa.string_view(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test_every_type_that_is_text(tmp_path, kind):
    path = tmp_path / "a.parquet"
    texts = pa.array(["eins", "二"])
    texts = pa.array([b"eins", "二".encode()], kind) if "binary" in str(kind) else texts.cast(kind)
    pq.write_table(pa.table({"text": texts, "id": texts}), path)
    assert cells(path) == [("eins", "eins"), ("二", "二")]


def test_ids_that_are_uuids(tmp_path):
    path, name = tmp_path / "a.parquet", uuid.UUID(int=7)
    ids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([name.bytes], pa.binary(16)))
    pq.write_table(pa.table({"text": ["a"], "id": ids}), path)
    assert cells(path) == [(str(name), "a")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns("texts"), "must hold strings, got list<.*explode"),
        (Columns("chunk"), "must hold strings, got struct<.*by its path, COLUMN.FIELD: text"),
        (Columns("chunks.text"), "no column 'chunks.text': 'chunks' is list<.*explode"),
        (Columns("chunk.body"), "no column 'chunk.body'"),
        (Columns("text", "number"), "got double; pandas turns integers into floats where there are nulls"),
    ],
)
def test_columns_that_hold_no_texts_or_ids_are_refused_at_once(tmp_path, columns, message):
    path = tmp_path / "a.parquet"
    row = {"text": "a", "texts": ["a"], "chunk": {"text": "a"}, "chunks": [{"text": "a"}], "number": 1.0}
    pq.write_table(pa.Table.from_pylist([row]), path)
    with pytest.raises(InputError, match=message):
        next(read_texts(str(path), columns=columns))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.parquet"])
@pytest.mark.parametrize("change", ["grown", "cut", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, name, change):
    path, texts = tmp_path / name, [f"text {number}" for number in range(20_000)]
    if name == "a.parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        lines = texts if name in ("a.txt", "a.csv") else [json.dumps(text) for text in texts]
        path.write_text(
            {"a.json": "[" + ",\n".join(lines) + "]", "a.csv": "text\n" + "\n".join(lines)}.get(name, "\n".join(lines))
        )
    rows = read_texts(str(path))
    assert next(rows).text == "text 0"
    data = path.read_bytes()
    match change:
        case "grown":
            path.write_bytes(data + b"\n")
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "replaced":
            path.unlink()
            path.write_bytes(data)
        case "removed":
            path.unlink()
    with pytest.raises(InputError) as caught:
        list(rows)
    assert str(path) in str(caught.value)
