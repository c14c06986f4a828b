import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from m3_runtime.bulk.folder import JobFolder
from m3_runtime.bulk.sources import SourceWatch
from patience import PATIENCE_S

TEXTS = [
    "What is BGE M3?",
    "",
    "日本語のテキスト",
    "one two three two one",
    "a much longer text than all of the others in this list " * 4,
]
HEADS = ("--heads", "colbert, dense,sparse")

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from m3_runtime.cli import main
sys.exit(main(sys.argv[2:]))
"""


def table(work) -> pa.Table:
    return pyarrow.dataset.dataset(work.out / "vectors").to_table()


def ragged(column: pa.ChunkedArray, kind: str) -> list[np.ndarray]:
    return [np.array(rows, kind) for rows in column.to_pylist()]


def test_the_columns_hold_what_encode_gives(work, encoder):
    source = work.write([{"id": f"t{i}", "text": text} for i, text in enumerate(TEXTS)])
    done = work.run(source, *HEADS, "--shard-rows", 3)
    assert done.returncode == 0, done.stderr
    expected = encoder.encode(TEXTS, return_sparse=True, return_colbert_vecs=True)
    found = table(work)
    assert found.column("id").to_pylist() == [f"t{i}" for i in range(len(TEXTS))]
    assert found.column("tokens").to_pylist() == expected.token_counts.tolist()
    dense = np.array(found.column("dense_vecs").to_pylist(), np.float32)
    np.testing.assert_allclose(dense, expected.dense_vecs, atol=1e-6)
    for cell, weights in zip(found.column("lexical_weights").to_pylist(), expected.lexical_weights, strict=True):
        assert [str(entry["id"]) for entry in cell] == list(weights)
        assert [entry["weight"] for entry in cell] == pytest.approx(list(weights.values()), abs=1e-6)
    for rows, vectors in zip(ragged(found.column("colbert_vecs"), "float32"), expected.colbert_vecs, strict=True):
        np.testing.assert_allclose(rows, vectors, atol=1e-3)
    assert [path.name for path in sorted((work.out / "vectors").iterdir())] == [
        "part-00000000.parquet",
        "part-00000001.parquet",
    ]
    assert (work.out / "rejected.jsonl").read_text() == ""


def test_the_schema_says_what_the_vectors_are(work, encoder):
    source = work.write([{"text": "a"}])
    assert work.run(source, *HEADS, "--dense-dtype", "float16", "--max-length", 64).returncode == 0
    schema = pq.read_schema(work.out / "vectors" / "part-00000000.parquet")
    geometry = encoder.bundle.manifest.geometry
    assert schema.field("dense_vecs").type == pa.list_(pa.float16(), geometry.hidden_size)
    assert schema.field("colbert_vecs").type == pa.list_(pa.list_(pa.float16(), geometry.colbert_dim))
    assert schema.field("lexical_weights").type == pa.list_(pa.struct({"id": pa.int32(), "weight": pa.float32()}))
    assert schema.metadata[b"m3.space_id"] == encoder.space_id.encode()
    assert schema.metadata[b"m3.variant"] == b"onnx-fp32"
    assert schema.metadata[b"m3.max_length"] == b"64"
    assert schema.metadata[b"m3.colbert_dtype"] == b"float16"


def test_only_the_heads_that_are_asked_for(work):
    assert work.run(work.write([{"text": "a"}]), "--heads", "sparse").returncode == 0
    assert table(work).column_names == ["id", "tokens", "lexical_weights"]


def test_files_of_three_kinds_by_columns_names(work):
    folder = work.folder / "in"
    folder.mkdir()
    pq.write_table(pa.table({"body": ["p1", "p2"], "key": [1, 2]}), folder / "a.parquet")
    (folder / "b.jsonl").write_text('{"key": "j1", "body": "text"}\n{"key": "j2"}\n')
    (folder / "c.txt").write_text("a line\n")
    done = work.run(folder, "--text", "body", "--id", "key", "--shard-rows", 2, "--max-rejected", 1)
    assert done.returncode == 0, done.stderr
    assert work.ids() == ["1", "2", "j1", f"{folder}/c.txt:1"]
    assert work.rejected() == [{"place": f"{folder}/b.jsonl:2", "reason": "the object has no 'body'"}]
    assert "4 rows in 3 shards" in done.stderr
    assert "1 row is in rejected.jsonl" in done.stderr


def test_a_shard_of_bad_rows_alone_has_no_file(work):
    source = work.write(["bad", "bad", {"id": 3, "text": "good"}])
    assert work.run(source, "--shard-rows", 2, "--max-rejected", "70%").returncode == 0
    assert [path.name for path in (work.out / "vectors").iterdir()] == ["part-00000001.parquet"]
    assert len(work.rejected()) == 2


def test_an_input_without_rows(work):
    source = work.write([], "empty.txt")
    for more in ((), (), ("--check",), ("--max-rejected", "100%")):  # again, too: the job is finished then
        done = work.run(source, *more)
        assert done.returncode == 4, done.stderr
        assert done.stderr.endswith("m3-runtime: there is not one row in the input\n")
    beside = work.write([{"text": "a"}])
    work.out = work.folder / "both"
    assert work.run(source, beside).returncode == 0  # one of several files may be empty


def test_progress_shows_rate_and_time_left(work):
    done = work.run(work.numbered(20), "--shard-rows", 5)
    assert "tokens/s [" in done.stderr
    assert ", left " in done.stderr
    quiet = work.run(work.folder / "in.jsonl", "--shard-rows", 5, "--quiet")
    assert (quiet.returncode, quiet.stderr) == (0, "")


def test_a_finished_job_has_nothing_left_to_do(work):
    source = work.numbered(20)
    assert work.run(source, "--shard-rows", 5).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in work.out.rglob("*") if path.is_file()}
    done = work.run(source, "--shard-rows", 5)
    assert "the job was finished already; nothing was left to do" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in work.out.rglob("*") if path.is_file()} == before


def test_strict_stops_at_a_bad_row_and_the_same_job_goes_on_without(work):
    source = work.numbered(20, bad_every=12)
    done = work.run(source, "--shard-rows", 5, "--strict")
    assert done.returncode == 2
    assert f"{source}:12: the text must be a str, got NoneType; a strict job stops" in done.stderr
    assert work.ids() == [f"t{i}" for i in range(10)]
    assert work.rejected() == []
    assert work.run(source, "--shard-rows", 5).returncode == 0
    assert work.ids() == [f"t{i}" for i in range(20) if i != 11]
    assert len(work.rejected()) == 1


def test_long_texts_are_cut_and_counted_or_rejected(work):
    source = work.write([{"id": i, "text": "word " * (3 if i % 2 else 300)} for i in range(6)])
    done = work.run(source, "--max-length", 32)
    assert "3 texts were longer than --max-length and cut" in done.stderr
    assert max(table(work).column("tokens").to_pylist()) == 32
    work.out = work.folder / "rejecting"
    assert work.run(source, "--max-length", 32, "--on-truncate", "reject").returncode == 4
    assert work.ids() == ["1", "3", "5"]
    assert [row["reason"] for row in work.rejected()] == ["the text has more than 32 tokens"] * 3
    work.out = work.folder / "strict"
    done = work.run(source, "--max-length", 32, "--on-truncate", "reject", "--strict")
    assert f"{source}:1: the text has more than 32 tokens; a strict job stops" in done.stderr
    assert work.ids() == []


def limited(work, limit_bytes: int, *more: object) -> subprocess.CompletedProcess[str]:
    """As where the disk is full: files may not grow over a limit, so a write fails in the middle."""
    words = [sys.executable, "-c", LIMITED, str(limit_bytes), *work.command(*more)[3:]]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)


def test_no_room_for_a_shard(work):
    texts = [{"id": f"t{i}", "text": "word " * (200 if i >= 6 else 1)} for i in range(9)]
    source, more = work.write(texts), ("--heads", "dense,colbert", "--shard-rows", 3)
    done = limited(work, 30_000, source, *more)
    assert done.returncode == 1
    assert "partial/shard-2." in done.stderr
    assert "File too large; finished shards are kept: make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert work.ids() == [f"t{i}" for i in range(6)]
    assert list((work.out / "partial").iterdir()) == []
    assert work.run(source, *more).returncode == 0
    assert work.ids() == [f"t{i}" for i in range(9)]


def test_no_room_for_the_journal(work):
    source, more = work.numbered(30, bad_every=7), ("--heads", "sparse", "--shard-rows", 1)
    done = limited(work, 4_000, source, *more)
    assert done.returncode == 1
    assert "journal.jsonl" in done.stderr
    assert 0 < len(work.ids()) < 26
    assert work.run(source, *more).returncode == 4
    assert work.ids() == [f"t{i}" for i in range(30) if i % 7 != 6]
    assert len(work.rejected()) == 4


def test_a_changed_input_is_refused(work):
    source = work.numbered(10)
    assert work.run(source).returncode == 0
    with source.open("a") as file:
        file.write(json.dumps({"id": "new", "text": "new"}) + "\n")
    done = work.run(source)
    assert done.returncode == 2
    assert f"holds another job ('{source}' has changed since)" in done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--heads", "dense,splade"), "expected some of dense,sparse,colbert, got 'dense,splade'"),
        (("--heads", "dense,dense"), "'dense,dense' names the head 'dense' twice"),
        (("--heads", "dense,"), "'dense,' names no head before, between or after its commas"),
        (("--heads", "Dense"), "expected some of dense,sparse,colbert, in lower case, got 'Dense'"),
        (("--dense-dtype", "float64"), "expected float32 or float16, got 'float64'"),
        (("--max-length", 100_000), "--max-length is 100000, but the model takes at most"),
        (("--colbert-dim", 4), "--colbert-dim is of colbert vectors, which --heads does not ask for"),
        (("--colbert-dtype", "int8"), "--colbert-dtype is of colbert vectors"),
        (("--colbert-pool", 1), "--colbert-pool is of colbert vectors"),
        (("--heads", "sparse", "--dense-dtype", "float32"), "--dense-dtype is of dense vectors"),
        (("--colbert-dtype", "float64"), "expected float32 or float16 or int8 or int4 or binary, got 'float64'"),
        (("--input-format", "lines", "--text", "body"), "--text names a column, and lines of text have none"),
        (("--input-format", "lines", "--id", "key"), "--id names a column"),
        (("missing.txt",), "cannot read 'missing.txt': no such file"),
    ],
)
def test_arguments_that_are_refused(work, more, message):
    done = work.run(work.write([{"text": "a"}]), *more)
    assert done.returncode == 2
    assert message in done.stderr
    assert not work.out.exists()


@pytest.mark.parametrize(("package", "more"), [("pyarrow", ()), ("scipy", ("--heads", "colbert", "--colbert-pool", 2))])
def test_the_missing_extra_is_named(work, package, more):
    code = f"import sys; sys.modules[{package!r}] = None; from m3_runtime.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, *work.command(work.write([{"text": "a b c"}]), *more)[3:]]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert 'pip install "m3-runtime[bulk]"' in done.stderr
    assert not list(work.out.glob("vectors/*"))


@pytest.mark.parametrize(("more", "code"), [((), 4), (("--max-rejected", 4), 0), (("--max-rejected", "30%"), 0)])
def test_too_many_rejected_rows_have_a_code_of_their_own(work, more, code):
    source = work.numbered(15, bad_every=4)
    for _ in range(2):  # it is so the second time too, when nothing is left to do
        done = work.run(source, *more)
        assert done.returncode == code
        assert ("3 of 15 rows were rejected, more than --max-rejected 10%" in done.stderr) == (code == 4)
    assert len(work.ids()) == 12


def test_a_job_without_one_good_row_failed(work):
    done = work.run(work.write([{"body": "a"}]), "--max-rejected", "100%", "--quiet")
    assert done.returncode == 4
    assert done.stderr == "m3-runtime: 1 of 1 rows were rejected, more than --max-rejected 100%\n"


@pytest.mark.parametrize("share", ["-1", "101%", "x", "1.5", "nan%"])
def test_shares_that_are_none(work, share):
    assert work.run(work.write(["a"]), f"--max-rejected={share}").returncode == 2


def test_ids_of_several_rows_are_counted(work):
    source = work.write([{"id": f"t{i % 7}", "text": "a"} for i in range(10)])
    for _ in range(2):
        done = work.run(source, "--shard-rows", 4)
        assert "3 rows have an id that a row before has, 't" in done.stderr


def test_a_check_says_what_to_expect_and_writes_nothing(work):
    texts = [{"id": i % 9, "text": "word " * (40 if i % 5 == 4 else 3)} for i in range(10)]
    source = work.write([*texts, {"id": "x"}])
    done = work.run(source, "--check", "--max-length", 32, *HEADS)
    assert done.returncode == 0, done.stderr
    assert not work.out.exists()
    assert "10 rows of 1 file would be encoded, 1 rejected\n" in done.stdout
    assert f"  1 x the object has no 'text', first {source}:11\n" in done.stdout
    assert "32 at most" in done.stdout
    assert "2 texts are longer than --max-length and would be cut" in done.stdout
    assert "1 row has an id that a row before has" in done.stdout
    assert "tokens/s of a sample; about" in done.stdout
    tokens = int(done.stdout.partition(" tokens; ")[0].splitlines()[-1])
    assert work.run(source, "--max-length", 32).returncode == 0
    assert sum(table(work).column("tokens").to_pylist()) == tokens


def test_a_check_counts_what_a_job_would_reject(work):
    source = work.write([{"text": "word " * (300 if i else 3)} for i in range(3)])
    done = work.run(source, "--check", "--max-length", 32, "--on-truncate", "reject")
    assert done.returncode == 4
    assert "1 row of 1 file would be encoded, 2 rejected" in done.stdout
    assert "2 x the text has more than 32 tokens" in done.stdout


@pytest.mark.parametrize("change", ["cut", "grown", "rewritten"])
def test_an_input_that_changes_while_it_is_read(work, monkeypatch, change):
    """Finished shards are of the file as it was, and the job does not end well."""
    source, commit = work.numbered(60), JobFolder.commit

    def then_change(self, draft):
        entry = commit(self, draft)
        if draft.counts.index == 1:
            data = source.read_bytes()
            changed = {"cut": data[: len(data) // 2], "grown": data + data, "rewritten": data.replace(b"text", b"TEXT")}
            source.write_bytes(changed[change])
        return entry

    monkeypatch.setattr(JobFolder, "commit", then_change)
    done = work.run(source, "--shard-rows", 5)
    assert done.returncode == 2
    assert f"'{source}' was changed while it was read" in done.stderr
    assert work.ids() == [f"t{i}" for i in range(10)]
    assert '"complete"' not in (work.out / "journal.jsonl").read_text()


def test_a_file_that_was_read_and_changes_before_the_end(work, monkeypatch):
    first, second = work.write([{"text": "a"}], "a.jsonl"), work.write([{"text": "b"}] * 9, "b.jsonl")
    check = SourceWatch.check

    def changed_at_the_end(watch: SourceWatch, *, current: bool = False) -> None:
        if not current:
            first.write_text('"c"\n')
        check(watch, current=current)

    monkeypatch.setattr(SourceWatch, "check", changed_at_the_end)
    done = work.run(first, second)
    assert done.returncode == 2
    assert f"'{first}' was changed" in done.stderr


def test_a_wrong_column_of_the_last_file_is_noticed_before_the_first_is_encoded(work):
    first = work.write([{"text": "a"}], "a.jsonl")
    pq.write_table(pa.table({"body": ["b"]}), work.folder / "b.parquet")
    done = work.run(first, work.folder / "b.parquet")
    assert done.returncode == 2
    assert "has no column 'text'; its columns are: body" in done.stderr
    assert not work.out.exists()


def test_the_output_is_apart_from_the_inputs(work):
    folder = work.folder / "in"
    (folder / "below").mkdir(parents=True)
    (folder / "a.txt").write_text("a\n")
    (work.folder / "link").symlink_to(folder / "below")
    for out in (folder, folder / "out", folder / "below" / "x" / "y", work.folder / "link" / "out"):
        work.out = out
        done = work.run(folder)
        assert (done.returncode, "is in the input" in done.stderr) == (2, True), done.stderr
    work.out = folder
    done = work.run(folder / "a.txt")
    assert (done.returncode, "is in the output folder" in done.stderr) == (2, True), done.stderr
    work.out = work.folder / "dangling"
    work.out.symlink_to(work.folder / "nowhere")
    assert "is a link to nothing" in work.run(folder).stderr
    work.out = Path(work.arguments()[1]) / "vectors"
    assert "would be written over" in work.run(folder).stderr


def test_what_a_folder_has_besides_is_named(work):
    folder = work.folder / "in"
    folder.mkdir()
    for name in ("a.txt", "b.bak", "_SUCCESS"):
        (folder / name).write_text("a\n")
    assert f"left out of '{folder}': _SUCCESS, b.bak\n" in work.run(folder).stderr


@pytest.mark.parametrize("flags", [(), ("--on-truncate", "reject")])
def test_texts_with_pieces_that_the_bundle_dropped_are_counted(work, small_bundle, flags):
    small = type(work)(work.folder, small_bundle)
    source = small.write(["на что", "the model", "на", "search", "на"])
    check = small.run(source, *flags, "--check", "--shard-rows", 2, "--input-format", "lines")
    assert "3 texts have pieces that the bundle dropped" in check.stdout, check
    done = small.run(source, *flags, "--shard-rows", 2, "--input-format", "lines")
    assert "3 texts have pieces that the bundle dropped" in done.stderr, done.stderr
    again = small.run(source, *flags, "--shard-rows", 2, "--input-format", "lines")
    assert "3 texts have pieces that the bundle dropped" in again.stderr, again.stderr
