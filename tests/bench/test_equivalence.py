"""`m3-bench equivalence`: the same index is equivalent, another is not, and what does not compare is refused."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from qdrant_client import QdrantClient, models

from m3_bench import cli, documents
from m3_bench.documents import Equivalence, Model, Rankings, Run
from m3_bench.equivalence import agreements
from m3_bench.machine import this_machine
from m3_bench.recording import Recording, digest_of, read_recording, write_recording
from m3_bench.workers.vectors import by_id
from m3_export.verify.parity import Outputs
from m3_runtime import Bundle, M3Encoder
from m3_runtime.bundle.manifest import MANIFEST_NAME
from m3_runtime.bundle.reader import COLBERT_PCA
from m3_runtime.bundle.space import colbert_space_of
from m3_runtime.bundle.writer import list_files, write_manifest
from m3_runtime.cli import main as m3_runtime
from m3_runtime.integrations.passages import notes_of
from m3_runtime.integrations.qdrant import Passage, QdrantIndex

DATA = Path(__file__).parents[2] / "benchmarks" / "data" / "multilingual"
PASSAGES = [json.loads(line)["text"] for line in (DATA / "corpus.jsonl").read_text().splitlines()][:40]
QUERIES = [json.loads(line)["text"] for line in (DATA / "queries.jsonl").read_text().splitlines()][:50]
NUMBERED = tuple(enumerate(PASSAGES))
FLOAT = ("--variant", "onnx-fp32", "--threads", 1)


def equivalence(*words) -> int:
    return cli.main(["equivalence", "--quiet", *map(str, words)])


def indexed(bundle: Path, out: Path, *words, passages=NUMBERED) -> Path:
    """A folder of m3-runtime bulk."""
    source = out.with_suffix(".jsonl")
    source.write_text("".join(json.dumps({"id": f"p{name}", "text": text}) + "\n" for name, text in passages))
    words = ("--heads", "dense,sparse,colbert", "--quiet", *FLOAT, *words)
    assert m3_runtime(["bulk", *map(str, (bundle, source, "-o", out, *words))]) == 0
    return out


def recorded(encoder: M3Encoder, texts: list[str], path: Path, ids=(), lexical=None, **of_model) -> Path:
    """What m3-bench record would write, were this encoder PyTorch; `lexical` stands for its lexical weights."""
    found = encoder.encode(texts, return_sparse=True, return_colbert_vecs=True)
    outputs = Outputs(found.dense_vecs, lexical or [by_id(row) for row in found.lexical_weights], found.colbert_vecs)
    model = replace(Model("m", encoder.space_id, "2" * 64), **of_model)
    run = Run(this_machine(), model, 1, (0,), digest_of(texts), (), ())
    write_recording(Recording(run, tuple(texts), outputs, tuple(ids)), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("indexes")


@pytest.fixture(scope="module")
def queries(folder) -> Path:
    path = folder / "queries.txt"
    path.write_text("".join(text + "\n" for text in QUERIES))
    return path


@pytest.fixture(scope="module")
def index(tiny_bundle, folder) -> Path:
    return indexed(tiny_bundle, folder / "index")


@pytest.fixture(scope="module")
def rankings(tiny_bundle, index, queries, folder) -> Path:
    path = folder / "rankings.json"
    assert equivalence(index, "--queries", queries, "--bundle", tiny_bundle, *FLOAT, "-o", path) == 0
    return path


def found_of(path: Path) -> dict:
    return {one.method: one for one in agreements(documents.read_as(Equivalence, path))}


def test_another_order_and_smaller_numbers_are_equivalent(tiny_bundle, index, queries, tmp_path, capsys):
    backwards = NUMBERED[::-1]
    words = ("--shard-rows", 7, "--dense-dtype", "float16", "--colbert-dtype", "int8")
    other = indexed(tiny_bundle, tmp_path / "small", *words, passages=backwards)
    out = tmp_path / "e.json"
    assert equivalence(index, other, "--queries", queries, "--bundle", tiny_bundle, *FLOAT, "-o", out) == 0
    found = found_of(out)
    assert list(found)[:3] == ["dense", "sparse", "dense+sparse 1/0.3"]
    assert {"colbert", "all 0.4/0.2/0.4"} <= set(found)
    assert found["sparse"].overlap.mean == 1
    assert found["sparse"].drift_max == 0
    assert 0 < found["dense"].drift_max < 2e-3
    assert found["colbert"].overlap.mean > 0.95
    assert found["dense"].order > 0.95
    said = capsys.readouterr().out
    assert f"{index} and {other}: 40 documents, 50 queries, the best 10 of each" in said
    assert "*" not in said.partition("|---")[2].replace("dense+sparse", "")


def test_packed_rows_of_fewer_dimensions_are_searched(tiny_bundle, queries, tmp_path, capsys):
    words = ("--colbert-dim", 6, "--colbert-dtype")
    half, packed = (indexed(tiny_bundle, tmp_path / dtype, *words, dtype) for dtype in ("float16", "int4"))
    out = tmp_path / "e.json"
    assert equivalence(half, packed, "--queries", queries, "--bundle", tiny_bundle, *FLOAT, "-o", out) in (0, 3)
    assert 0 < found_of(out)["colbert"].drift_max < 0.2
    assert found_of(out)["dense"].drift_max == 0
    capsys.readouterr()
    without = copied_without(tiny_bundle, tmp_path / "without", COLBERT_PCA)
    assert equivalence(half, packed, "--queries", queries, "--bundle", without, *FLOAT) == 2
    assert "the bundle has no colbert_pca.npy" in capsys.readouterr().err
    other = with_other_axes(tiny_bundle, tmp_path / "other")
    assert equivalence(half, packed, "--queries", queries, "--bundle", other, *FLOAT) == 2
    said = capsys.readouterr().err
    for folder in (tiny_bundle, other):
        assert colbert_space_of(Bundle.open(folder), 6) in said


def copied_without(bundle: Path, to: Path, name: str) -> Path:
    """A bundle of hard links that lacks a file."""
    shutil.copytree(bundle, to, copy_function=os.link)
    for gone in (name, MANIFEST_NAME):
        (to / gone).unlink()
    write_manifest(to, replace(Bundle.open(bundle).manifest, files=list_files(to)))
    return to


def with_other_axes(bundle: Path, to: Path) -> Path:
    """A bundle of hard links with the principal axes in another order."""
    copied_without(bundle, to, COLBERT_PCA)
    np.save(to / COLBERT_PCA, np.ascontiguousarray(np.load(bundle / COLBERT_PCA)[:, ::-1]))
    write_manifest(to, replace(Bundle.open(to).manifest, files=list_files(to)))
    return to


def test_one_machine_writes_rankings_and_another_checks_them(tiny_bundle, index, rankings, queries, tmp_path, capsys):
    assert "vecs" not in rankings.read_text()
    assert documents.read_as(Rankings, rankings).documents == 40
    assert equivalence(rankings, index, "--queries", queries, "--bundle", tiny_bundle, *FLOAT) == 0
    assert equivalence(rankings, rankings) == 0
    assert cli.main(["report", str(rankings), "-o", str(tmp_path / "report.html")]) == 2
    assert "is for m3-bench equivalence; a report does not draw it" in capsys.readouterr().err
    mixed = indexed(tiny_bundle, tmp_path / "mixed", passages=list(enumerate(PASSAGES[1:] + PASSAGES[:1])))
    capsys.readouterr()
    assert equivalence(rankings, mixed, "--queries", queries, "--bundle", tiny_bundle, *FLOAT) == 3
    assert "**below 0.95**" in capsys.readouterr().out
    assert equivalence(rankings, mixed, "--queries", queries, "--bundle", tiny_bundle, *FLOAT, "--min-overlap", 0) == 0


def test_a_bundle_beside_a_recording_of_passages_and_of_queries(tiny_bundle, encoder, tmp_path):
    passages = recorded(encoder, PASSAGES, tmp_path / "passages.safetensors")
    queries = recorded(encoder, QUERIES, tmp_path / "queries.safetensors")
    assert equivalence(tiny_bundle, passages, "--queries", queries, *FLOAT, "-o", tmp_path / "e.json") == 0
    found = found_of(tmp_path / "e.json")
    assert found["dense"].overlap.mean > 0.99
    assert found["colbert"].overlap.mean > 0.99


def test_methods_that_one_index_lacks_are_named(tiny_bundle, index, rankings, queries, tmp_path, capsys):
    dense = indexed(tiny_bundle, tmp_path / "dense", "--heads", "dense")
    for words, lacks in (((index, dense), dense), ((dense, rankings), dense)):
        assert equivalence(*words, "--queries", queries, "--bundle", tiny_bundle, *FLOAT) == 0
        said = capsys.readouterr().out
        others = ["sparse", "dense+sparse 1/0.3", "colbert", "all 0.4/0.2/0.4"]
        (line,) = (line for line in said.splitlines() if line.startswith(f"* not compared, for {lacks} lacks it: "))
        assert sorted(line.partition("it: ")[2].split(", ")) == sorted(others)
        assert "| sparse" not in said


def test_other_vocabularies_of_a_checkpoint_are_named(rankings, tmp_path, capsys):
    space_id = json.loads(rankings.read_text())["space_id"]
    small = changed(rankings, tmp_path / "small.json", space_id=f"{space_id}+7091a181")
    assert equivalence(rankings, small) == 0
    said = capsys.readouterr().out
    assert (
        f"the vocabularies differ: {rankings} (index) is of {space_id}, {small} (index) of {space_id}+7091a181" in said
    )


def test_a_recording_with_ids_is_compared_with_a_bulk_folder(tiny_bundle, index, queries, encoder, tmp_path, capsys):
    backwards, names = PASSAGES[::-1], [f"p{name}" for name, _ in NUMBERED[::-1]]
    words = ("--queries", queries, "--bundle", tiny_bundle, *FLOAT, "-o", tmp_path / "e.json", "--force")
    named = recorded(encoder, backwards, tmp_path / "named.safetensors", names)
    assert equivalence(index, named, *words) == 0
    assert all(one.overlap.mean == 1 for one in found_of(tmp_path / "e.json").values())
    assert equivalence(named, tiny_bundle, *words) == 0
    capsys.readouterr()
    numbered = recorded(encoder, PASSAGES, tmp_path / "numbered.safetensors")
    assert equivalence(index, numbered, *words) == 2
    said = capsys.readouterr().err
    assert f"{str(index)!r} and {str(numbered)!r} have different ids of documents: " in said
    assert f"'p0' only in {str(index)!r}, '000000000' only in {str(numbered)!r}; give a text the same" in said
    fewer = recorded(encoder, PASSAGES[1:], tmp_path / "fewer.safetensors", names[-2::-1])
    assert equivalence(index, fewer, *words) == 2
    assert f"numbers of documents: 40 and 39, 'p0' only in {str(index)!r}" in capsys.readouterr().err
    twice = recorded(encoder, PASSAGES[:12], tmp_path / "twice.safetensors", ["a"] * 12)
    assert equivalence(index, twice, *words) == 2
    assert "twice.safetensors' has the id 'a' twice" in capsys.readouterr().err


def test_another_checkpoint_is_named_before_its_vectors_are_looked_into(
    tiny_bundle, index, queries, encoder, tmp_path, capsys
):
    lexical = [{101057: 0.5}] * len(PASSAGES)
    path = tmp_path / "other.safetensors"
    foreign = recorded(encoder, PASSAGES, path, lexical=lexical, space_id="m3-other")
    for first in (index, tiny_bundle):
        assert equivalence(first, foreign, "--queries", queries, "--bundle", tiny_bundle, *FLOAT) == 2
        said = capsys.readouterr().err
        assert f"{str(foreign)!r} was made from another checkpoint: it has vectors of the space m3-other" in said
    assert equivalence(index, index, "--queries", foreign, "--bundle", tiny_bundle, *FLOAT) == 2
    assert "was made from another checkpoint" in capsys.readouterr().err


def test_blank_queries_are_left_out(tiny_bundle, index, tmp_path, capsys):
    (tmp_path / "q.txt").write_text("\n  \nhello\n")
    words = (index, index, "--queries", tmp_path / "q.txt", "--bundle", tiny_bundle, *FLOAT)
    assert cli.main(["equivalence", *map(str, words)]) == 0
    said = capsys.readouterr()
    assert "blank queries, which are left out: 2 of 3" in said.err
    assert "40 documents, 1 query, the best 10 of each" in said.out
    assert "* 1 query is few; use 50 or more" in said.out
    (tmp_path / "q.txt").write_text("\n \n")
    assert equivalence(*words) == 2
    assert "has no queries: all are blank" in capsys.readouterr().err


def test_usage_is_that_of_the_command(capsys):
    with pytest.raises(SystemExit):
        equivalence("b", "x", "y")
    said = capsys.readouterr().err
    assert said.startswith("usage: m3-bench equivalence ")
    assert "m3-bench equivalence: error: unrecognized arguments: y" in said


def test_a_collection_is_searched_by_its_own_engine(tiny_bundle, index, queries, encoder, tmp_path):
    client = QdrantClient(path=str(tmp_path / "qdrant"))
    QdrantIndex.create(client, "docs", encoder).add([Passage(f"p{i}", text) for i, text in enumerate(PASSAGES)])
    client.close()
    place = f"qdrant:{tmp_path / 'qdrant'}/docs"
    words = ("--queries", queries, "--bundle", tiny_bundle, *FLOAT, "-o", tmp_path / "e.json")
    assert equivalence(place, index, *words) == 0
    assert list(found_of(tmp_path / "e.json")) == ["dense", "sparse"]
    assert equivalence(place, place, *words, "--force") == 0  # two indexes, one folder, which one client may open
    assert list(found_of(tmp_path / "e.json")) == ["dense", "sparse", "hybrid", "reranked"]


def test_documents_of_other_ids_are_refused_though_a_store_lists_none(
    tiny_bundle, index, queries, encoder, tmp_path, capsys
):
    client = QdrantClient(path=str(tmp_path / "qdrant"))
    for name, start in (("numbers", 0), ("others", 1000)):
        made = QdrantIndex.create(client, name, encoder)
        made.add([Passage(start + i, text) for i, text in enumerate(PASSAGES)])
    client.close()
    numbers, others = (f"qdrant:{tmp_path / 'qdrant'}/{name}" for name in ("numbers", "others"))
    words = ("--queries", queries, "--bundle", tiny_bundle, *FLOAT)
    assert equivalence(numbers, *words, "-o", tmp_path / "numbers.json") == 0
    for first, second in ((numbers, index), (index, tmp_path / "numbers.json")):
        assert equivalence(first, second, *words, "-o", tmp_path / "e.json") == 2
        said = capsys.readouterr().err
        assert "have different ids of documents: " in said
        assert f" only in {str(second if first == index else first)!r}; give a text the same" in said
    assert equivalence(numbers, others, *words, "-o", tmp_path / "e.json") == 2
    assert "have different ids of documents: '0' in the one, '1000' in the other" in capsys.readouterr().err
    assert not (tmp_path / "e.json").exists()


def test_a_collection_of_other_vectors_is_refused(tiny_bundle, index, queries, encoder, tmp_path, capsys):
    client = QdrantClient(path=str(tmp_path / "qdrant"))
    dense = models.VectorParams(size=64, distance=models.Distance.EUCLID)
    rows = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    colbert = models.VectorParams(size=24, distance=models.Distance.DOT, multivector_config=rows)
    sparse = {"sparse": models.SparseVectorParams()}
    client.create_collection("few", {"dense": dense}, metadata=notes_of(encoder))
    client.create_collection("plain", dense, metadata=notes_of(encoder))
    client.create_collection("euclid", {"dense": dense, "colbert": colbert}, sparse, metadata=notes_of(encoder))
    client.close()
    for name, message in (
        ("few", "collection 'few' has no vectors called sparse, colbert; expected those that"),
        ("plain", "collection 'plain' has no vectors called dense, sparse, colbert"),
        ("euclid", "collection 'euclid' scores dense vectors by Euclid; expected Cosine or Dot"),
    ):
        place = f"qdrant:{tmp_path / 'qdrant'}/{name}"
        assert equivalence(index, place, "--queries", queries, "--bundle", tiny_bundle, *FLOAT) == 2
        assert message in capsys.readouterr().err


def test_what_finds_nothing_is_no_proof(index, rankings, queries, tiny_bundle, tmp_path, capsys):
    ranked = json.loads(rankings.read_text())["ranked"]
    nothing = {"ids": [[]] * 50, "scores": []}
    empty = changed(rankings, tmp_path / "empty.json", ranked=[one | nothing for one in ranked])
    assert equivalence(empty, empty) == 2
    assert "find nothing, for not one query" in capsys.readouterr().err
    sparse = [one | nothing if one["method"] == "sparse" else one for one in ranked]
    blind = changed(rankings, tmp_path / "blind.json", ranked=sparse)
    assert equivalence(blind, blind) == 0
    assert "* sparse: neither finds anything for 50 of 50 queries, which count as the same" in capsys.readouterr().out


def test_repeated_queries_are_said(tiny_bundle, index, tmp_path, capsys):
    (tmp_path / "q.txt").write_text("bees\nbees\nlakes\n")
    words = (index, index, "--queries", tmp_path / "q.txt", "--bundle", tiny_bundle, *FLOAT)
    assert cli.main(["equivalence", *map(str, words)]) == 0
    assert "queries that an earlier one repeats, and that count again: 1 of 3" in capsys.readouterr().err


def test_recorded_queries_lack_no_vectors_of_the_index(tiny_bundle, encoder, tmp_path, capsys):
    passages = recorded(encoder, PASSAGES, tmp_path / "passages.safetensors")
    whole = read_recording(recorded(encoder, QUERIES, tmp_path / "queries.safetensors"))
    for name, missing in (("lexical", "lexical weights"), ("colbert", "ColBERT rows")):
        poor = replace(whole, outputs=replace(whole.outputs, **{name: None}))
        write_recording(poor, tmp_path / "poor.safetensors")
        words = (passages, tiny_bundle, "--queries", tmp_path / "poor.safetensors", *FLOAT)
        assert equivalence(*words) == 2
        assert f"the recorded queries have no {missing}, which passages.safetensors has" in capsys.readouterr().err
    narrow = replace(whole, outputs=replace(whole.outputs, dense=whole.outputs.dense[:, :8]))
    write_recording(narrow, tmp_path / "narrow.safetensors")
    assert equivalence(passages, tiny_bundle, "--queries", tmp_path / "narrow.safetensors", *FLOAT) == 2
    assert "the recorded queries: dense vectors of 8 dimensions, the bundle's have 64" in capsys.readouterr().err


def test_a_bundle_beside_another_bundle(tiny_bundle, encoder, queries, tmp_path, capsys):
    passages = recorded(encoder, PASSAGES, tmp_path / "passages.safetensors")
    copy = copied_without(tiny_bundle, tmp_path / "copy", COLBERT_PCA)
    words = (copy, passages, "--queries", queries, "--bundle", tiny_bundle, *FLOAT)
    assert equivalence(*words) == 2
    assert f"{str(copy)!r} is a bundle, and encodes the queries itself; leave --bundle" in capsys.readouterr().err


def changed(rankings: Path, to: Path, **keys) -> Path:
    to.write_text(json.dumps(json.loads(rankings.read_text()) | keys))
    return to


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"space_id": "m3-other"}, "have different vector spaces: m3-"),
        ({"documents": 41}, "have different numbers of documents: 40 and 41; fill both with the same documents"),
        ({"ids_sha256": "0" * 64}, "have different ids of documents: digests "),
        (
            {"queries_sha256": "0" * 64},
            "have different queries: 50 each, but other texts or another order; search both with the same --queries",
        ),
        (
            {"queries": 49, "queries_sha256": "0" * 64, "ranked": []},
            "have different queries: 50 and 49; search both with",
        ),
        ({"depth": 20}, "have different depths: 10 and 20; search both with the same --depth"),
        ({"documents": 10}, "has 10 documents, and the best 10 of them are all: search with a lower --depth"),
        ({"documents": 0}, "has 0 documents"),
        ({"queries": 0}, "there are no queries"),
        ({"ranked": []}, "share no method"),
        ({"depth": 0}, "they are the best 0 of each query"),
    ],
)
def test_what_does_not_compare_is_refused(rankings, tmp_path, capsys, keys, message):
    other = changed(rankings, tmp_path / "other.json", **keys)
    assert equivalence(rankings, other) == 2
    said = capsys.readouterr().err
    assert message in said
    assert repr(str(other)) in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda method: method["ids"].pop(), "has not one ranking for each query, of which there are 50"),
        (lambda method: method["scores"].pop(), "has not one ranking for each"),
        (lambda method: method["scores"][3].pop(), "has not a score for each document"),
        (lambda method: method["ids"].__setitem__(3, method["ids"][3][:1] * 10), "ranks a document twice"),
        (lambda method: method.update(method="sparse"), "a method is there twice"),
    ],
)
def test_rankings_that_were_changed_are_refused(rankings, tmp_path, capsys, change, message):
    ranked = json.loads(rankings.read_text())["ranked"]
    change(ranked[0])
    assert equivalence(rankings, changed(rankings, tmp_path / "other.json", ranked=ranked)) == 2
    assert message in capsys.readouterr().err


def test_shards_that_were_changed_are_refused(tiny_bundle, index, queries, tmp_path, capsys):
    def refused(name: str, change, message: str) -> None:
        shutil.copytree(index, tmp_path / name)
        change(tmp_path / name / "vectors" / "part-00000000.parquet")
        assert equivalence(index, tmp_path / name, "--queries", queries, "--bundle", tiny_bundle, *FLOAT) == 2
        assert message in capsys.readouterr().err

    def of(change):
        return lambda part: pq.write_table(change(table), part)

    def with_column(name: str, kind: pa.DataType, change=list):
        at = table.schema.get_field_index(name)
        values = change(table.column(name).to_pylist())
        return of(lambda table: table.set_column(at, pa.field(name, kind), pa.array(values, kind)))

    refused("cut", lambda part: part.write_bytes(b"PAR1"), "a shard was changed")
    table = pq.read_table(index / "vectors" / "part-00000000.parquet")
    notes = table.schema.metadata
    whole = (index / "vectors" / "part-00000000.parquet").read_bytes()
    for at in (len(whole) // 10, len(whole) // 2):  # a byte of dense vectors, and one of ColBERT rows
        flipped = bytes((*whole[:at], whole[at] ^ 85, *whole[at + 1 :]))
        refused(f"flipped {at}", lambda part, flipped=flipped: part.write_bytes(flipped), "a shard was changed (could ")
    refused("noteless", of(lambda table: table.replace_schema_metadata(None)), "m3.space_id is missing, expected m3-")
    refused("nameless", of(lambda table: table.drop(["id"])), "a shard was changed (part-00000000.parquet has the col")
    refused("short", of(lambda table: table.slice(1)), "39 documents, its journal says 40")
    for key in ("m3.space_id", "m3.variant", "m3.colbert_dtype"):
        other = notes | {key.encode(): b"other"}
        refused(key, of(lambda table, other=other: table.replace_schema_metadata(other)), f"{key} is other, expected ")
    numbers = with_column("id", pa.int64(), lambda ids: list(range(len(ids))))
    refused("numbers", numbers, "the column id is int64 or null, expected string")
    refused(
        "nulls",
        with_column("id", pa.string(), lambda ids: [None, *ids[1:]]),
        "the column id is string or null, expected string",
    )
    for name in ("dense_vecs", "lexical_weights", "colbert_vecs"):
        texts = with_column(name, pa.string(), lambda values: ["x"] * len(values))
        refused(name, texts, f"the column {name} is string or null, expected ")


def test_a_store_that_is_not_there_is_named_and_not_made(tiny_bundle, index, queries, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for place, message in (
        ("qdrant:none/docs", "there is no 'none'"),
        ("qdrant:empty/docs", "'empty' is no folder of Qdrant's"),
        ("qdrant:http://127.0.0.1:9/docs", "qdrant:http://127.0.0.1:9/docs cannot be searched"),
        ("milvus:none.db/docs", "there is no 'none.db'"),
        ("milvus:empty/docs", "'empty' is no folder of Milvus's"),
    ):
        assert equivalence(index, place, "--queries", queries, "--bundle", tiny_bundle, *FLOAT) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("dense_vecs", "NaN or infinity in the dense vector of document 'p0'"),
        ("dense_vecs narrow", "the column dense_vecs is fixed_size_list<element: float>[8], expected"),
        ("lexical_weights", "the lexical weights of document 'p0' have the token id 100000000"),
        ("colbert_vecs", "NaN or infinity in the ColBERT rows of document 'p0'"),
        ("colbert_vecs none", "document 'p0' has not ColBERT rows of 24 values"),
        ("colbert_vecs int8", "m3.colbert_dtype is int8, expected float16"),
    ],
)
def test_vectors_that_no_model_gives_are_refused(tiny_bundle, index, queries, tmp_path, capsys, column, message):
    shutil.copytree(index, tmp_path / "index")
    part = tmp_path / "index" / "vectors" / "part-00000000.parquet"
    name, _, how = column.partition(" ")
    table = pq.read_table(part)
    kind = pa.list_(pa.float32(), 8) if how == "narrow" else table.schema.field(name).type
    rows = table.column(name).to_pylist()
    if name == "lexical_weights":
        rows[0][0]["id"] = 10**8
    elif how == "narrow":
        rows = [row[:8] for row in rows]
    elif how == "none":
        rows[0] = []
    elif not how:
        (rows[0] if name == "dense_vecs" else rows[0][0])[0] = np.float16(np.nan) if name == "colbert_vecs" else np.nan
    schema = table.schema.set(table.schema.get_field_index(name), pa.field(name, kind, nullable=False))
    if how == "int8":
        schema = schema.with_metadata({**schema.metadata, b"m3.colbert_dtype": b"int8"})
    columns = [rows if one == name else table.column(one).to_pylist() for one in table.column_names]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    pq.write_table(pa.table(arrays, schema=schema), part)
    out = tmp_path / "out.json"
    words = ("--queries", queries, "--bundle", tiny_bundle, *FLOAT, "-o", out)
    assert equivalence(index, tmp_path / "index", *words) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_no_input_is_written_over(tiny_bundle, rankings, queries, tmp_path, capsys):
    for path in (queries, tiny_bundle / "new.json"):
        before = path.read_bytes() if path.exists() else None
        words = ("--queries", queries, "--bundle", tiny_bundle, "-o", path, "--force")
        assert equivalence(rankings, rankings, *words) == 2
        assert "would be written over" in capsys.readouterr().err
        assert (path.read_bytes() if path.exists() else None) == before
    os.mkfifo(tmp_path / "pipe")
    assert equivalence(rankings, rankings, "-o", tmp_path / "pipe", "--force") == 2
    assert (tmp_path / "pipe").is_fifo()
    assert equivalence(rankings, rankings, "-o", "-") == 2
    assert "-o -: what is written goes into a file" in capsys.readouterr().err
    assert equivalence(rankings, rankings, "-o", "/proc/e.json") == 2  # where no file can be made
    assert "'/proc/e.json' cannot be written (" in capsys.readouterr().err


def test_what_is_no_index_is_refused_and_nothing_is_written(
    tiny_bundle, reranker_bundle, index, rankings, queries, tmp_path, capsys
):
    few = indexed(tiny_bundle, tmp_path / "few", passages=[(n, text) for n, text in enumerate("abc")])
    strange = tmp_path / "queries.md"
    strange.write_text("a query")
    out = tmp_path / "out.json"
    twice = indexed(tiny_bundle, tmp_path / "twice", passages=[(1, "a"), (1, "b")])
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    wrong_kind = tmp_path / "wrong.json"
    documents.write(Run(this_machine(), Model("m", "m3-1", "2" * 64), 1, (0,), "", (), ()), wrong_kind)
    lines = (index / "journal.jsonl").read_text().splitlines(keepends=True)
    (unfinished / "journal.jsonl").write_text("".join(lines[:-1]))
    (tmp_path / "empty.txt").write_text("")
    encoded_by = ("--bundle", tiny_bundle, *FLOAT)
    for words, message in (
        ((index,), "nothing to compare one index with"),
        ((index, "--queries", queries, *encoded_by, "-o", tmp_path / "r.txt"), "which must end in .json"),
        ((index, "--queries", queries, *encoded_by, "--min-overlap", 0.5), "--min-overlap is for comparing"),
        (
            (index, queries, "--queries", queries, *encoded_by),
            "is not an index: expected a folder of m3-runtime bulk, FILE.safetensors, a bundle, qdrant:URL/COLLECTION, "
            "milvus:FILE/COLLECTION, or RANKINGS.json, which this command wrote",
        ),
        ((wrong_kind, rankings), "wrong.json' is a run, expected a file of rankings"),
        ((index, tmp_path / "none", "--queries", queries, *encoded_by), "none': there is no such file or folder"),
        ((index, unfinished, "--queries", queries, *encoded_by), "is not finished"),
        ((index, twice, "--queries", queries, *encoded_by), "has the id 'p1' twice"),
        ((index, tiny_bundle, "--queries", queries), "beside it, whose texts it encodes"),
        ((index, index, "--queries", queries), "--bundle BUNDLE is missing"),
        ((index, few, "--queries", queries, *encoded_by), "few' has 3 documents, and the best 10 of them are all"),
        ((few, "--queries", queries, *encoded_by), "few' has 3 documents"),
        ((rankings, "--min-overlap", "0.5"), "has rankings already: give what to compare them with"),
        ((index, index, "--queries", queries, "--bundle", reranker_bundle), "is a reranker's bundle"),
        ((index, reranker_bundle, "--queries", queries), "is a reranker's bundle"),
        ((index, index, "--queries", strange, *encoded_by), "known endings are .jsonl"),
        ((index, index, *encoded_by), "--queries FILE is missing"),
        ((rankings, rankings, "--queries", queries), "--queries is for searching, and what is given are rankings"),
        ((rankings, rankings, "--depth", "5"), "--depth is for searching"),
        ((index, index, "--queries", tmp_path / "empty.txt", *encoded_by), "has no queries"),
        ((index, "qdrant:docs", "--queries", queries, *encoded_by), "expected qdrant:URL/COLLECTION"),
    ):
        assert equivalence(*([] if len(words) == 1 or "-o" in words else ["-o", out]), *words) == 2, words
        said = capsys.readouterr().err
        assert message in said
        assert "--input-format" not in said
        assert not out.exists()
    words = ("equivalence", index, few, "--queries", queries, *encoded_by)
    assert cli.main([str(word) for word in words]) == 2
    assert "Searching" not in capsys.readouterr().err  # refused before the first query
