"""Result documents: what is written is read again, and nothing else is."""

import json

import pytest

from m3_bench import documents
from m3_bench.documents import Ceiling, Roofline, Run
from m3_bench.errors import BenchError, DocumentError
from m3_bench.machine import this_machine

ROOFLINE = Roofline(
    this_machine(), 2, (Ceiling("openvino", "int8", (1.5e11, 1.25e11)), Ceiling("torch", "bf16", (), "no bf16"))
)


def test_what_is_written_is_read_again(tmp_path):
    documents.write(ROOFLINE, tmp_path / "a.json")
    assert documents.read(tmp_path / "a.json") == ROOFLINE
    assert documents.read_as(Roofline, tmp_path / "a.json") == ROOFLINE
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def changed(**keys) -> str:
    return json.dumps(json.loads(documents.to_text(ROOFLINE)) | keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a document of m3-bench"),
        ("{}", "is not a document of m3-bench"),
        (changed(kind="bundle"), "got 'bundle'"),
        (changed(kind=["run"]), "got ['run']"),
        (changed(schema_version=2), "has schema version 2, this release reads 1; upgrade m3-runtime"),
        (changed(schema_version=0), "measure again"),
        (changed(schema_version=True), "is not a document"),
        (changed(threads="two"), "threads: expected int, got 'two'"),
        (changed(colour="red"), "unknown keys ['colour']"),
        (
            documents.to_text(ROOFLINE).replace("1.5e+11", "NaN").replace("150000000000.0", "NaN"),
            "NaN is no measurement",
        ),
    ],
)
def test_what_is_no_document_is_refused(text, message):
    with pytest.raises(DocumentError, match=r"x\.json") as error:
        documents.from_text(text, "x.json")
    assert message in str(error.value)


def test_another_kind_is_named(tmp_path):
    documents.write(ROOFLINE, tmp_path / "a.json")
    with pytest.raises(DocumentError, match="is a roofline, expected a run"):
        documents.read_as(Run, tmp_path / "a.json")


def test_a_missing_file_and_a_full_disk_are_named(tmp_path):
    with pytest.raises(DocumentError, match="cannot be read"):
        documents.read(tmp_path / "none.json")
    with pytest.raises(BenchError, match="cannot be written"):
        documents.write(ROOFLINE, tmp_path / "no" / "a.json")
