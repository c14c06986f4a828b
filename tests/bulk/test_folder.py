import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from m3_runtime.bulk.folder import JobFolder
from m3_runtime.bulk.job import BulkJob, VectorSettings
from m3_runtime.bulk.journal import ShardCounts, read_journal
from m3_runtime.bulk.shards import ShardDraft
from m3_runtime.bulk.sources import SourceFile
from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.colbert import ColbertDtype
from m3_runtime.errors import BulkError, InputError
from m3_runtime.io.formats import SourceFormat
from m3_runtime.io.rows import BadRow, Columns

SOURCE = SourceFile("in.jsonl", SourceFormat.JSONL, 100, "0" * 64)
NOBODY = 65534
JOB = BulkJob("m3-1", "onnx-fp32", VectorSettings((Head.DENSE,), 512), 10, Columns(), (SOURCE,))


def draft(folder: JobFolder, index: int) -> ShardDraft:
    path = folder.partial / str(index)
    path.write_text(f"shard {index}")
    counts = ShardCounts(index=index, rows=9, rejected=1, tokens=90, truncated=0, input_bytes=25)
    return ShardDraft(counts, path, (BadRow(f"in.jsonl:{index}", "bäd"),))


def finished(out: Path, shards: int = 4) -> None:
    with JobFolder.open(out, JOB) as folder:
        for index in range(shards):
            if index not in folder.done:
                folder.commit(draft(folder, index))
        folder.finish()


def content(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_what_a_finished_job_leaves(tmp_path):
    finished(tmp_path / "out", 2)
    found = content(tmp_path / "out")
    assert sorted(found) == [
        "journal.jsonl",
        "rejected.jsonl",
        "vectors/part-00000000.parquet",
        "vectors/part-00000001.parquet",
    ]
    assert found["rejected.jsonl"].decode().splitlines() == [
        '{"place": "in.jsonl:0", "reason": "bäd"}',
        '{"place": "in.jsonl:1", "reason": "bäd"}',
    ]
    assert read_journal(found["journal.jsonl"], "j").complete


def test_a_journal_cut_off_anywhere_resumes_to_the_same_folder(tmp_path):
    finished(tmp_path / "whole")
    whole = content(tmp_path / "whole")
    journal = whole["journal.jsonl"]
    ends = [0, *(place + 1 for place, byte in enumerate(journal) if byte == ord("\n"))]
    cuts = {cut for end in ends for cut in (end - 1, end, end + 1, end + 40) if 0 <= cut < len(journal)}
    for cut in sorted(cuts):
        out = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "whole", out)
        (out / "journal.jsonl").write_bytes(journal[:cut])
        finished(out)
        assert content(out) == whole, cut
        shutil.rmtree(out)


def test_a_last_line_of_noise_counts_as_not_written(tmp_path):
    finished(tmp_path / "whole")
    whole = content(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    lines = whole["journal.jsonl"].splitlines(keepends=True)
    (tmp_path / "out" / "journal.jsonl").write_bytes(b"".join(lines[:3]) + b"\0" * 50 + b"\n")
    finished(tmp_path / "out")
    assert content(tmp_path / "out") == whole


def test_noise_before_the_last_line_is_refused(tmp_path):
    finished(tmp_path / "out")
    path = tmp_path / "out" / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"noise\n" + b"".join(lines[1:]))
    with pytest.raises(InputError, match="not a journal that this release reads"):
        finished(tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"index": 1', '"index": -1'),
        ('"rows": 9', '"rows": -9'),
        ('"index": 1', '"index": 0'),
        ('{"shard"', "[" * 10**5),
    ],
)
def test_numbers_that_no_shard_has_are_refused(tmp_path, old, new):
    finished(tmp_path / "out", 2)
    data = content(tmp_path / "out")["journal.jsonl"].decode()
    with pytest.raises(InputError, match="is not a journal that this release reads"):
        read_journal(data.replace(old, new).encode(), "j")


def test_a_finished_job_opens_where_nothing_may_be_written(read_only):
    with read_only(finished) as out, JobFolder.open(out, JOB) as folder:
        assert folder.complete is not None
        assert (len(folder.shards), folder.taken_away()) == (4, 0)
        folder.finish()
        with pytest.raises(InputError, match="holds another job"), JobFolder.open(out, replace(JOB, shard_rows=11)):
            pass


def test_an_unfinished_job_says_that_it_cannot_be_written(read_only):
    def begun(out: Path) -> None:
        with JobFolder.open(out, JOB) as folder:
            folder.commit(draft(folder, 0))

    with read_only(begun) as out, pytest.raises(BulkError, match=r"cannot write .*journal.jsonl'"):
        finished(out)


@pytest.fixture
def read_only():
    """Makes a folder, then takes the right to write away; root has every right, so root is somebody else meanwhile."""

    @contextmanager
    def made(make):
        with TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            make(out)
            for path in (*out.rglob("*"), out, Path(folder)):
                path.chmod(0o555 if path.is_dir() else 0o444)
            euid = os.geteuid()
            if euid == 0:
                os.seteuid(NOBODY)
            try:
                yield out
            finally:
                os.seteuid(euid)
                for path in (Path(folder), out, *out.rglob("*")):
                    path.chmod(0o755)

    return made


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(JOB, variant="onnx-int8"), "variant: begun with onnx-fp32, now onnx-int8"),
        (replace(JOB, space_id="m3-2"), "space id: begun with m3-1, now m3-2"),
        (replace(JOB, shard_rows=11), "shard rows: begun with 10, now 11"),
        (replace(JOB, columns=Columns("body")), "text column: begun with text, now body"),
        (replace(JOB, sources=(replace(SOURCE, ends_sha256="1" * 64),)), "'in.jsonl' has changed since"),
        (replace(JOB, sources=(SOURCE, replace(SOURCE, path="b"))), "sources: begun with in.jsonl, now in.jsonl, b"),
        (
            replace(JOB, vectors=replace(JOB.vectors, heads=(Head.DENSE, Head.SPARSE))),
            "heads: begun with dense, now dense, sparse",
        ),
        (
            replace(JOB, vectors=replace(JOB.vectors, colbert_dtype=ColbertDtype.INT8)),
            "colbert dtype: begun with float16, now int8",
        ),
    ],
)
def test_another_job_is_refused_and_what_differs_is_said(tmp_path, other, message):
    finished(tmp_path / "out", 1)
    before = content(tmp_path / "out")
    with pytest.raises(InputError, match=message), JobFolder.open(tmp_path / "out", other):
        pass
    assert content(tmp_path / "out") == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty and has no journal\.jsonl"), JobFolder.open(tmp_path, JOB):
        pass
    assert content(tmp_path) == {"mine.txt": b"mine"}
    with pytest.raises(InputError, match="is not a folder"), JobFolder.open(tmp_path / "mine.txt", JOB):
        pass


def test_a_journal_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"day": 1}\n{"day": 2}\n')
    with pytest.raises(InputError, match="expected a line 'job', got"), JobFolder.open(tmp_path, JOB):
        pass
    assert content(tmp_path) == {"journal.jsonl": b'{"day": 1}\n{"day": 2}\n'}


def test_a_second_process_is_refused(tmp_path):
    out = tmp_path / "out"
    with JobFolder.open(out, JOB) as folder:
        folder.commit(draft(folder, 0))
        before = content(out)
        code = f"from test_folder import *; JobFolder.open(Path({str(out)!r}), JOB).__enter__()"
        here = Path(__file__).parent
        done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False)
        assert "BulkError: another process is at work on" in done.stderr
        assert content(out) == before


def test_a_shard_that_was_changed_is_noticed_and_one_taken_away_is_not_made_again(tmp_path):
    out = tmp_path / "out"
    finished(out, 3)
    (out / "vectors" / "part-00000001.parquet").unlink()
    with JobFolder.open(out, JOB) as folder:
        assert folder.done == {0, 1, 2}
        assert folder.taken_away() == 1
    (out / "vectors" / "part-00000002.parquet").write_text("longer than before")
    with pytest.raises(InputError, match=r"part-00000002\.parquet' has 18 bytes, the journal says 7"):
        finished(out, 3)


def test_files_of_others_among_the_shards_stay(tmp_path):
    out = tmp_path / "out"
    finished(out, 1)
    (out / "vectors" / "part-mine.parquet").write_text("mine")
    (out / "vectors" / "part-00000007.parquet").write_text("of a run that was killed")
    finished(out, 1)
    assert sorted(path.name for path in (out / "vectors").iterdir()) == ["part-00000000.parquet", "part-mine.parquet"]


def test_rejected_rows_that_are_missing_are_noticed(tmp_path):
    finished(tmp_path / "out")
    (tmp_path / "out" / "rejected.jsonl").write_text("")
    with pytest.raises(InputError, match="shorter than the journal says"):
        finished(tmp_path / "out")
