import gzip
import json
import os
import re
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3_runtime.bulk.shards import read_shards
from m3_runtime.bulk.sources import find_sources
from m3_runtime.errors import InputError
from m3_runtime.io.formats import SourceFormat
from m3_runtime.io.rows import LONGEST_BYTES, BadRow, Columns, Row


def rows(path: Path, columns: Columns = Columns()) -> list[Row | BadRow]:  # noqa: B008 - frozen
    (source,) = find_sources([str(path)]).files
    return [raw.parsed() for raw in source.rows(columns)]


def named(path: Path, *found: tuple[int, str, str]) -> list[Row]:
    return [Row(name, text, f"{path}:{number}") for number, name, text in found]


def test_text_lines_are_called_by_their_place(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufefferste\r\n\nletzte".encode())
    assert rows(path) == named(path, (1, f"{path}:1", "erste"), (2, f"{path}:2", ""), (3, f"{path}:3", "letzte"))


def test_jsonl_takes_ids_where_there_are_any(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 7, "text": "a"}\n\n"b"\n{"text": "c", "id": "x"}\n{"text": ""}\n')
    assert rows(path) == named(path, (1, "7", "a"), (3, f"{path}:3", "b"), (4, "x", "c"), (5, f"{path}:5", ""))


def test_gzip_reads_the_same(tmp_path):
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_text('{"id": "1", "text": "a"}\n"b"\n')
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [row.text for row in rows(packed)] == [row.text for row in rows(plain)]


def test_damaged_gzip_says_how_far_it_was_read(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one\n" * 10_000)[:-12])
    with pytest.raises(InputError, match=r"cannot read .* after line \d+"):
        rows(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "not JSON"),
        (b"[1]", "expected a JSON object, got list"),
        (b'{"txt": "a"}', "the object has no 'text'"),
        (b'{"text": 5}', "the text must be a str, got int"),
        (b'{"text": null}', "the text must be a str, got NoneType"),
        (b'{"text": "\\ud800"}', "the text has a lone surrogate"),
        (b'{"text": "a", "id": []}', "the id must be a string or an integer, got list"),
        (b'{"text": "a", "id": null}', "the id must be a string or an integer, got null"),
        (b'{"text": "a", "id": true}', "the id must be a string or an integer, got bool"),
        (b'{"text": "a", "id": 1.0}', "the id must be a string or an integer, got float"),
        (b'{"text": "a", "id": "\\udc00"}', "the id has a lone surrogate"),
        (b'{"text": "\xff"}', "not UTF-8 text (byte 10 of the line)"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "a", "id": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_bad_line_has_a_reason_and_the_next_is_read(tmp_path, line, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'"before"\n' + line + b'\n"after"\n')
    before, bad, after = rows(path)
    assert isinstance(bad, BadRow)
    assert bad.place == f"{path}:2"
    assert reason in bad.reason
    assert [before, after] == named(path, (1, f"{path}:1", "before"), (3, f"{path}:3", "after"))


def test_a_named_id_column_must_be_in_every_object(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": 1, "body": "a"}\n{"id": 2, "body": "b"}\n"c"\n')
    good, bad, bare = rows(path, Columns("body", "key"))
    assert good == Row("1", "a", f"{path}:1")
    assert bad == BadRow(f"{path}:2", "the object has no 'key'")
    assert bare == BadRow(f"{path}:3", "expected a JSON object, got str")


def test_a_line_without_end_is_bad_and_is_not_held(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.write(b"one\n")
        for _ in range(5):
            file.write(b"x" * LONGEST_BYTES)
        file.write(b"\nlast\n")
    tracemalloc.start()
    first, bad, last = rows(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(bad, BadRow)
    assert "longer than 16777216 bytes" in bad.reason
    assert [first, last] == named(path, (1, f"{path}:1", "one"), (3, f"{path}:3", "last"))
    assert peak_bytes < 4 * LONGEST_BYTES


def parquet(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_of_every_kind_of_string(tmp_path, kind):
    texts = pa.array(["a", None, "c"]).cast(kind)
    path = parquet(
        tmp_path / "a.parquet", id=pa.array([3, 4, 2**63], pa.uint64()), text=texts, more=pa.array([1, 2, 3])
    )
    good, bad, last = rows(path)
    assert [good, last] == named(path, (1, "3", "a"), (3, str(2**63), "c"))
    assert bad == BadRow(f"{path}:2", "the text is null")


def test_parquet_without_ids_and_with_bytes_that_are_no_text(tmp_path):
    raw = pa.array([b"fine", b"\xff\xfe"], pa.binary())
    texts = pa.StringArray.from_buffers(2, raw.buffers()[1], raw.buffers()[2])
    path = parquet(tmp_path / "a.parquet", body=texts)
    good, bad = rows(path, Columns("body"))
    assert good == Row(f"{path}:1", "fine", f"{path}:1")
    assert bad == BadRow(f"{path}:2", "not UTF-8 text (byte 0 of the cell)")


def test_one_column_may_be_both(tmp_path):
    path = parquet(tmp_path / "a.parquet", text=pa.array(["a", "b"]))
    assert rows(path, Columns("text", "text")) == named(path, (1, "a", "a"), (2, "b", "b"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns("body"), "has no column 'body'; its columns are: id, text, number"),
        (Columns("number"), "column 'number' must hold strings, got int64"),
        (Columns("text", "key"), "has no column 'key'"),
        (Columns("text", "id"), "column 'id' must hold strings or integers, got double"),
        (Columns("text"), "column 'id' must hold strings or integers, got double"),
    ],
)
def test_parquet_with_other_columns_is_refused(tmp_path, columns, message):
    path = parquet(tmp_path / "a.parquet", id=pa.array([0.5]), text=pa.array(["a"]), number=pa.array([1]))
    with pytest.raises(InputError, match=re.escape(message)):
        rows(path, columns)


def test_what_is_no_parquet_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("text")
    with pytest.raises(InputError, match="as Parquet"):
        rows(path)


def test_a_large_row_group_is_read_piece_by_piece(tmp_path):
    count, text_bytes = 4_000, 20_000
    path = tmp_path / "a.parquet"
    texts = pa.array([f"{i:08d}" * (text_bytes // 8) for i in range(count)])
    pq.write_table(pa.table({"text": texts}), path, compression="none", use_dictionary=False, row_group_size=count)
    del texts
    (source,) = find_sources([str(path)]).files
    before, most = pa.total_allocated_bytes(), 0
    for number, raw in enumerate(source.rows(Columns())):
        if number % 100 == 0:
            most = max(most, pa.total_allocated_bytes() - before)
            assert raw.parsed().text.startswith(f"{number:08d}")
    assert number == count - 1
    assert 0 < most < count * text_bytes * 0.75


def test_many_lines_take_no_more_memory_than_few(tmp_path):
    def peak_bytes(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(json.dumps({"text": f"text {i} " * 20}) + "\n" for i in range(count)))
        sources = find_sources([str(path)]).files
        tracemalloc.start()
        assert sum(len(shard.rows) for shard in read_shards(sources, Columns(), 100)) == count
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    peak_bytes(500)  # what is allocated once
    assert peak_bytes(10_000) < 1.2 * peak_bytes(1_000)


def test_a_folder_gives_its_files_by_name(tmp_path):
    for name in (
        "b.jsonl", "a.txt.gz", "c.parquet", "_SUCCESS", ".a.txt.gz.crc", "notes.md", "d.parquet.gz",
        "lang=en/part-0.json", "lang=de/year=2024/part-1.csv", "_temporary/0/part-2.csv",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_sources([str(tmp_path)])
    assert [(str(Path(one.path).relative_to(tmp_path)), one.format) for one in found.files] == [
        ("a.txt.gz", SourceFormat.LINES),
        ("b.jsonl", SourceFormat.JSONL),
        ("c.parquet", SourceFormat.PARQUET),
        ("lang=de/year=2024/part-1.csv", SourceFormat.CSV),
        ("lang=en/part-0.json", SourceFormat.JSONL),
    ]
    assert found.left_out == (
        f"left out of '{tmp_path}': .a.txt.gz.crc, _SUCCESS, _temporary/, d.parquet.gz and 1 more",
    )


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("a\n")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(17):  # a path of more than 4096 bytes, which even root cannot open
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with pytest.raises(InputError, match=r"cannot read .*name the files to read"):
        find_sources([str(tmp_path)])


def test_files_of_spark_without_ending_are_read_as_asked(tmp_path):
    for name in ("part-00000", "part-00001", "_SUCCESS", ".part-00000.crc", "part-00000.crc"):
        (tmp_path / name).write_text("a line\n")
    with pytest.raises(InputError, match=r"it has .*part-00000.* which --input-format makes readable"):
        find_sources([str(tmp_path)])
    found = find_sources([str(tmp_path)], SourceFormat.LINES)
    assert [Path(one.path).name for one in found.files] == ["part-00000", "part-00001"]
    assert len(found.left_out) == 1


@pytest.mark.parametrize(
    ("name", "kind"), [("_delta_log/0.json", "Delta Lake"), ("metadata/v1.metadata.json", "Iceberg")]
)
def test_a_table_with_a_log_of_its_own_is_refused(tmp_path, name, kind):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("{}")
    (tmp_path / "part-0.txt").write_text("deleted long ago\n")
    with pytest.raises(InputError, match=f"is a table of {kind}"):
        find_sources([str(tmp_path)])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["missing.txt"], "no such file"),
        (["-"], "standard input cannot be read again"),
        (["a.txt", "./a.txt"], "is named twice"),
        (["empty"], "has no file that ends in"),
        (["a.md"], "its name does not say how it is read; known endings are .jsonl"),
        (["part-0"], "all but Parquet also with .gz, .bz2, .xz, .zst, .lz4 behind it. Rename it"),
    ],
)
def test_inputs_that_cannot_be_taken(tmp_path, monkeypatch, names, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "a.md", "part-0"):
        (tmp_path / name).write_text("a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        find_sources(names)


def test_a_changed_file_is_noticed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * 200_000)
    before = find_sources([str(path)])
    path.write_bytes(b"a" * 199_999 + b"b")
    assert find_sources([str(path)]) != before


def test_shards_are_runs_of_rows_across_files(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.txt"]
    paths[0].write_text('{"id": 0, "text": "a"}\nbad\n{"id": 2, "text": "c"}\n')
    paths[1].write_text("d\ne\nf\ng\n")
    sources = find_sources(list(map(str, paths))).files
    shards = list(read_shards(sources, Columns(), 2))
    assert [[row.text for row in shard.rows] for shard in shards] == [["a"], ["c", "d"], ["e", "f"], ["g"]]
    assert [[row.place for row in shard.bad] for shard in shards] == [[f"{paths[0]}:2"], [], [], []]
    assert sum(shard.input_bytes for shard in shards) == sum(source.size_bytes for source in sources)
    assert list(read_shards(sources, Columns(), 2, done={0, 2})) == [shards[1], shards[3]]
    assert list(read_shards(sources, Columns(), 2, done={0, 1, 2, 3})) == []


def test_an_input_that_fills_its_last_shard(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a\nb\n")
    (shard,) = read_shards(find_sources([str(path)]).files, Columns(), 2)
    assert len(shard.rows) == 2
