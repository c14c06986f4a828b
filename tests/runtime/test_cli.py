import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from commands import Done, run_main
from m3_runtime import M3Encoder, PackedRows
from m3_runtime.cli import info, main
from m3_runtime.cpu import CpuInfo
from m3_runtime.io.output import npz_arrays, write_npz
from patience import PATIENCE_S, wait_until

HEADS = "dense,sparse,colbert"


def command(*arguments: object, text: str = "") -> Done:
    return run_main(main, *arguments, text=text)


def encode(bundle: Path, *arguments: object, text: str = "") -> Done:
    return command("encode", bundle, *arguments, "--variant", "onnx-fp32", "--threads", 1, text=text)


def records(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines()]


def test_lines_to_jsonl(tiny_bundle, encoder):
    texts = ["What is BGE M3?", "", "日本語"]
    done = encode(tiny_bundle, "--heads", HEADS, text="\n".join(texts) + "\n")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    expected = encoder.encode(texts, return_sparse=True, return_colbert_vecs=True)
    got = records(done.stdout)
    assert [record["id"] for record in got] == ["1", "2", "3"]
    for row, record in enumerate(got):
        assert record["tokens"] == expected.token_counts[row]
        np.testing.assert_allclose(record["dense_vecs"], expected.dense_vecs[row], atol=1e-6)
        np.testing.assert_allclose(record["colbert_vecs"], expected.colbert_vecs[row], atol=1e-6)
        assert record["lexical_weights"] == pytest.approx(expected.lexical_weights[row], abs=1e-6)
        assert list(record["lexical_weights"]) == list(expected.lexical_weights[row])


def test_what_may_be_left_out_may_also_come_after_options(tiny_bundle, tmp_path):
    (tmp_path / "in.txt").write_text("a word\n")
    done = command("encode", tiny_bundle, "--variant", "onnx-fp32", tmp_path / "in.txt", "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert len(records(done.stdout)) == 1
    for words in (("--threads", 1, "a", "b"), ("a", "--threads", 1, "b"), ("a", "b", "--threads", 1)):
        assert len(records(command("score", tiny_bundle, *words).stdout)) == 1
    for words in (("encode", tmp_path / "in.txt", "--threads", 1, "more"), ("encode", "--none", tmp_path / "in.txt")):
        done = command(words[0], tiny_bundle, *words[1:])
        assert (done.returncode, done.stdout) == (2, "")
        assert f"unrecognized arguments: {'more' if 'more' in words else '--none'}" in done.stderr
    for words in (("-", tmp_path / "in.txt"), ("--threads", 1, "-", tmp_path / "in.txt")):  # standard input, and a file
        done = command("encode", tiny_bundle, *words, text="a word\n")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"unrecognized arguments: {tmp_path / 'in.txt'}" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("notes.md", "a", "Rename it; or pass --input-format lines|jsonl|json|csv|tsv|parquet"),
        ("a.jsonl", '["a"]', "let its name end in .json; or pass --input-format json"),
        ("a.csv", "body\na\n", "ends in .txt; or pass --text COLUMN, --id COLUMN, --input-format lines"),
    ],
)
def test_what_helps_with_a_file_is_said_in_the_commands_own_options(tiny_bundle, tmp_path, name, content, remedy):
    (tmp_path / name).write_text(content)
    for words in (("encode",), ("bulk", "-o", tmp_path / "o")):
        done = command(*words, tiny_bundle, tmp_path / name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.endswith(f"{remedy}\n")
    done = command("score", tiny_bundle, "--pairs", tmp_path / name)
    assert done.returncode == 2
    assert "--text" not in done.stderr
    assert ("; or pass --input-format" in done.stderr) == (name == "notes.md")


def test_jsonl_keeps_ids_and_order(tiny_bundle, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": "b", "text": "long text here"}\n\n{"text": "a", "id": 7, "more": 1}\n"bare"\n')
    done = encode(tiny_bundle, source, "-o", out)
    assert done.returncode == 0, done.stderr
    assert [record["id"] for record in records(out.read_text())] == ["b", "7", "4"]
    assert {key for record in records(out.read_text()) for key in record} == {"id", "tokens", "dense_vecs"}


def test_npz(tiny_bundle, tmp_path, encoder, texts):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.npz"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    done = encode(tiny_bundle, source, "--heads", HEADS, "--format", "npz", "-o", out, "--colbert-dtype", "float16")
    assert done.returncode == 0, done.stderr
    expected = encoder.encode(texts, return_sparse=True, return_colbert_vecs=True)
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["ids"].tolist() == [str(i + 1) for i in range(len(texts))]
        np.testing.assert_allclose(arrays["dense_vecs"], expected.dense_vecs, atol=1e-6)
        assert arrays["sparse_indptr"].tolist() == expected.sparse.indptr.tolist()
        assert arrays["sparse_ids"].tolist() == expected.sparse.ids.tolist()
        np.testing.assert_allclose(arrays["sparse_weights"], expected.sparse.weights, atol=1e-6)
        assert arrays["colbert_vecs"].dtype == np.float16
        start, end = arrays["colbert_indptr"][3:5]
        np.testing.assert_allclose(arrays["colbert_vecs"][start:end], expected.colbert_vecs[3], atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4", "binary"])
def test_colbert_rows_in_every_form(tiny_bundle, tmp_path, encoder, texts, dtype):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = (source, "--heads", "colbert", "--colbert-dtype", dtype, "--colbert-dim", 5, "--colbert-pool", 2)
    how = {"colbert_dtype": dtype, "colbert_dim": 5, "colbert_pool": 2}
    expected = encoder.encode(texts, return_dense=False, return_colbert_vecs=True, **how).colbert_vecs
    lines = encode(tiny_bundle, *words)
    assert lines.returncode == 0, lines.stderr
    for record, theirs in zip(records(lines.stdout), expected, strict=True):
        rows = record["colbert_vecs"]
        if isinstance(theirs, PackedRows):
            kind = "int8" if dtype == "int8" else "uint8"
            scales = np.array(record["colbert_scales"], np.float32)
            rows = PackedRows(dtype, np.array(rows, kind), scales, 5)
        np.testing.assert_allclose(rows, theirs, atol=1e-6 if dtype != "float16" else 1e-3)
    out = tmp_path / "out.npz"
    assert encode(tiny_bundle, *words, "--format", "npz", "-o", out).returncode == 0
    with np.load(out, allow_pickle=False) as arrays:
        rows = arrays["colbert_vecs"]
        if "colbert_scales" in arrays:
            rows = PackedRows(str(arrays["colbert_dtype"]), rows, arrays["colbert_scales"], int(arrays["colbert_dim"]))
        np.testing.assert_allclose(rows, np.concatenate(expected), atol=1e-6 if dtype != "float16" else 1e-3)
        assert arrays["colbert_space_id"] == encoder.colbert_space_id(5)
        assert len(arrays["colbert_indptr"]) == len(texts) + 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--colbert-dtype", "int8"), "--colbert-dtype is of colbert vectors, which --heads does not ask for"),
        (("--colbert-pool", 1, "--heads", "dense,sparse"), "--colbert-pool is of colbert vectors"),
        (("--colbert-dim", 4), "--colbert-dim is of colbert vectors"),
        (("--heads", "colbert", "--colbert-dim", 10**6), "colbert_dim must be a number from 1 to"),
        (("--text", "body"), "--text names a column, and lines of text have none"),
        (("--id", "key"), "--id names a column"),
        (("--heads", "colbert", "--colbert-dtype", "int2"), "expected float32 or float16 or int8 or int4 or binary"),
    ],
)
def test_options_that_fit_nothing_are_refused(tiny_bundle, tmp_path, more, message):
    out = tmp_path / "out.jsonl"
    done = encode(tiny_bundle, *more, "-o", out, text="a word")
    assert done.returncode == 2
    assert message in done.stderr
    assert not out.exists()


def test_a_format_without_a_file_of_pairs_is_refused(tiny_bundle):
    done = command("score", tiny_bundle, "a", "b", "--input-format", "jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--input-format is for --pairs FILE" in done.stderr


def test_more_texts_than_one_step(tiny_bundle):
    done = encode(tiny_bundle, "--heads", "sparse", "--progress", text="word\n" * 2500)
    assert len(records(done.stdout)) == 2500
    assert "2500 texts" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "in.jsonl:2: the object has no 'text'"),
        ("in.jsonl", b'{"text": "a"}\n{"text": 5}\n', "in.jsonl:2: the text must be a str, got int"),
        ("in.jsonl", b'{"text": "a"}\nnot json\n', "in.jsonl:2: not JSON"),
        ("in.jsonl", b'{"text": "\\ud800"}\n', "in.jsonl:1: the text has a lone surrogate"),
        ("in.jsonl", b'{"text": "a", "id": true}\n', "in.jsonl:1: the id must be a string or an integer, got bool"),
        ("in.jsonl", b'{"text": "a", "id": "\\udc00"}\n', "in.jsonl:1: the id has a lone surrogate"),
        ("in.jsonl", b'{"text": "a", "id": []}\n', "in.jsonl:1: the id must be a string or an integer, got list"),
        ("in.txt", b"fine\n\xff\xfe\n", "in.txt:2: not UTF-8"),
    ],
)
def test_bad_lines_are_named_and_nothing_is_left(tiny_bundle, tmp_path, name, content, message):
    folder = tmp_path / "work"
    folder.mkdir()
    (tmp_path / name).write_bytes(content)
    done = encode(tiny_bundle, tmp_path / name, "-o", folder / "out.jsonl")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(folder.iterdir()) == []


def test_an_older_output_stays_when_encoding_fails(tiny_bundle, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("older")
    assert encode(tiny_bundle, tmp_path / "missing.txt", "-o", out).returncode == 2
    assert out.read_text() == "older"


def test_output_has_the_usual_mode(tiny_bundle, tmp_path):
    out = tmp_path / "out.jsonl"
    assert encode(tiny_bundle, "-o", out, text="a\n").returncode == 0
    mask = os.umask(0)
    os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o666 & ~mask


def test_npz_holds_plain_arrays_only(tmp_path, encoder, texts):
    encoding = encoder.encode(texts, return_sparse=True, return_colbert_vecs=True)
    arrays = npz_arrays([str(i) for i in range(len(texts))], [encoding])
    assert not any(array.dtype.hasobject for array in arrays.values())
    with (tmp_path / "out.npz").open("wb") as file:
        write_npz(file, arrays)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as read:
        assert set(read) == set(arrays) == {
            "ids", "token_counts", "dense_vecs", "sparse_indptr", "sparse_ids", "sparse_weights",
            "colbert_indptr", "colbert_vecs",
        }  # fmt: skip
        for name in read:
            np.testing.assert_array_equal(read[name], arrays[name])


def test_npz_never_pickles(tmp_path):
    with (tmp_path / "out.npz").open("wb") as file, pytest.raises(ValueError, match="Object arrays"):
        write_npz(file, {"bad": np.array([None])})


def test_a_link_stays_and_what_it_points_at_is_replaced(tiny_bundle, tmp_path):
    real, links = tmp_path / "real", tmp_path / "links"
    real.mkdir()
    links.mkdir()
    (real / "vectors.jsonl").write_text("older")
    (links / "out.jsonl").symlink_to("../real/vectors.jsonl")
    (links / "new.jsonl").symlink_to("../real/new.jsonl")  # points at nothing yet
    for name in ("out.jsonl", "new.jsonl"):
        done = encode(tiny_bundle, "-o", links / name, text="a\n")
        assert done.returncode == 0, done.stderr
        assert (links / name).is_symlink()
    assert {path.name for path in real.iterdir()} == {"vectors.jsonl", "new.jsonl"}
    assert all(len(records(path.read_text())) == 1 for path in real.iterdir())
    failed = encode(tiny_bundle, tmp_path / "missing.txt", "-o", links / "out.jsonl")
    assert failed.returncode == 2
    assert len(records((real / "vectors.jsonl").read_text())) == 1, "it was replaced by nothing"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("form", ["jsonl", "npz"])
def test_a_pipe_is_written_to(tiny_bundle, tmp_path, form):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    done = encode(tiny_bundle, "--format", form, "-o", pipe, text="a\nb\n")
    assert done.returncode == 0, done.stderr
    reader.join(60)
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    if form == "jsonl":
        assert len(records(read[0].decode())) == 2
    else:
        with np.load(io.BytesIO(read[0]), allow_pickle=False) as arrays:
            assert arrays["ids"].tolist() == ["1", "2"]


@pytest.mark.parametrize("form", ["jsonl", "npz"])
def test_the_null_device_stays_what_it_is(tiny_bundle, form):
    done = encode(tiny_bundle, "--format", form, "-o", os.devnull, text="a\n")
    assert done.returncode == 0, done.stderr
    assert Path(os.devnull).is_char_device()


def test_an_output_that_cannot_be_written(tiny_bundle, tmp_path):
    for out in (tmp_path, tmp_path / "no" / "out.jsonl"):
        done = encode(tiny_bundle, "-o", out, text="a\n")
        assert done.returncode == 2
        assert done.stderr.startswith(f"m3-runtime: cannot write '{out}'")


def test_cut_texts_are_reported(tiny_bundle):
    done = encode(tiny_bundle, "--max-length", 4, text="one two three four five six\na\n")
    assert done.returncode == 0
    assert "1 of 2 texts were longer" in done.stderr


def test_cut_texts_can_be_an_error_that_names_the_line(tiny_bundle):
    done = encode(tiny_bundle, "--max-length", 4, "--on-truncate", "error", text="a\none two three four five six\n")
    assert done.returncode == 2
    assert "standard input:2: text 1 has" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("encode",),
        ("encode", "x", "--heads", "sparse,warm"),
        ("encode", "x", "--max-length", "2"),
        ("encode", "x", "--batch-size", "0"),
        ("encode", "x", "--format", "npz"),
        ("encode", "x", "--format", "csv"),
        ("score", "x", "only a query"),
        ("score", "x"),
        ("score", "x", "q", "p", "--pairs", "file"),
        ("score", "x", "q", "p", "--weights", "1", "1"),
        ("fly",),
    ],
)
def test_wrong_usage(arguments):
    done = command(*arguments)
    assert done.returncode == 2
    assert "usage: m3-runtime" in done.stderr


def test_a_missing_bundle(tmp_path):
    done = command("encode", tmp_path / "nowhere", text="a\n")
    assert done.returncode == 2
    assert done.stderr.startswith("m3-runtime: no bundle at")


def test_score_of_one_pair(tiny_bundle, encoder):
    done = command("score", tiny_bundle, "a query", "a passage", "--variant", "onnx-fp32")
    assert done.returncode == 0, done.stderr
    (scores,) = records(done.stdout)
    assert list(scores) == ["colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense"]
    assert scores == pytest.approx(encoder.compute_score(("a query", "a passage")), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pairs.tsv", "what\tthis\n\nwho\tthat one\n"),
        ("pairs.jsonl", '{"query": "what", "passage": "this"}\n{"query": "who", "passage": "that one"}\n'),
    ],
)
def test_score_of_a_file(tiny_bundle, tmp_path, encoder, name, content):
    (tmp_path / name).write_text(content)
    weights = ["0.4", "0.2", "0.4"]
    done = command("score", tiny_bundle, "--pairs", tmp_path / name, "--variant", "onnx-fp32", "--weights", *weights)
    assert done.returncode == 0, done.stderr
    expected = encoder.compute_score(
        [("what", "this"), ("who", "that one")], weights_for_different_modes=[float(w) for w in weights]
    )
    for key, values in expected.items():
        assert [scores[key] for scores in records(done.stdout)] == pytest.approx(values, abs=1e-5)


def test_want_of_memory_is_one_line_with_the_remedy(tiny_bundle, monkeypatch):
    def open_nothing(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 3.00 GiB")

    monkeypatch.setattr(M3Encoder, "open", open_nothing)
    done = encode(tiny_bundle, text="a")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("m3-runtime: out of memory (Unable to allocate 3.00 GiB); ")
    assert "--token-budget" in line


def test_score_names_a_bad_line(tiny_bundle, tmp_path):
    for line, got in (("no tab", "'no tab'"), ("a\tb\t1", "3 columns; texts with tabs go into JSONL")):
        (tmp_path / "pairs.tsv").write_text(f"a\tb\n{line}\n")
        done = command("score", tiny_bundle, "--pairs", tmp_path / "pairs.tsv")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"pairs.tsv:2: expected a query, a tab and a passage, got {got}" in done.stderr


def test_score_reports_cut_texts(tiny_bundle, tmp_path):
    (tmp_path / "pairs.tsv").write_text("a\tb\nmany words in a row\tb\nmany words in a row\tmany words in a row\n")
    arguments = ["score", tiny_bundle, "--pairs", tmp_path / "pairs.tsv"]
    limits = ["--max-query-length", 4, "--max-passage-length", 4]
    done = command(*arguments, *limits)
    assert done.returncode == 0
    assert len(records(done.stdout)) == 3
    assert done.stderr == (
        "m3-runtime: 3 of 6 texts were longer than --max-query-length or --max-passage-length and were cut\n"
    )
    assert command(*arguments).stderr == ""
    refused = command(*arguments, *limits, "--on-truncate", "error")
    assert refused.returncode == 2
    assert "pairs.tsv:2: the query of pair 1 has" in refused.stderr


def test_info_says_what_is_over_budget(bundle_copy):
    manifest = bundle_copy / "manifest.json"
    data = json.loads(manifest.read_text())
    data["over_budget"] = {"onnx-int8": ["dense_min 0.9 is below 0.998", "colbert_p5 0.8 is below 0.993"]}
    manifest.unlink()
    manifest.write_text(json.dumps(data))
    words = command("info", bundle_copy).stdout
    assert words.count("OVER BUDGET: ") == 2
    assert "  OVER BUDGET: dense_min 0.9 is below 0.998\n" in words.partition("variant onnx-int8")[2]


@pytest.mark.parametrize(("flags", "here"), [({"avx512_bf16"}, "\n"), ({"avx512_vnni"}, "; in f32 here,")])
def test_info_says_what_runs_in_bf16(bundle_copy, monkeypatch, capsys, flags, here):
    manifest = bundle_copy / "manifest.json"
    data = json.loads(manifest.read_text())
    for variant in data["variants"]:
        if variant["name"] == "openvino-int8":
            variant["properties"]["INFERENCE_PRECISION_HINT"] = "bf16"
    manifest.unlink()
    manifest.write_text(json.dumps(data))
    monkeypatch.setattr(info, "cpu_info", lambda: CpuInfo("A Core", "x86_64", frozenset(flags)))
    assert main(["info", str(bundle_copy)]) == 0
    words = capsys.readouterr().out
    assert words.count("runs in bf16") == 1
    assert f"  what is not int8 runs in bf16{here}" in words.partition("variant openvino-int8")[2]


def test_info_in_words(tiny_bundle):
    done = command("info", tiny_bundle, "--verify", "full")
    assert done.returncode == 0, done.stderr
    with M3Encoder.open(tiny_bundle) as encoder:
        assert f"would run: {encoder.variant.name}" in done.stdout
        assert f"space_id: {encoder.space_id}" in done.stdout
    for words in (
        "source: tiny-random",
        "cls pooling",
        "variant onnx-fp32",
        "parity with PyTorch FP32",
        "heads: dense",
    ):
        assert words in done.stdout


def test_info_for_programs(tiny_bundle):
    data = json.loads(command("info", tiny_bundle, "--json").stdout)
    written = json.loads((tiny_bundle / "manifest.json").read_text())
    assert data["manifest"] == {key: value for key, value in written.items() if key != "manifest_sha256"}
    assert data["machine"]["variant"] in {variant["name"] for variant in data["manifest"]["variants"]}


@pytest.mark.parametrize("arguments", [("--help",), ("encode", "--help"), ("score", "--help"), ("info", "--help")])
def test_help_teaches(arguments):
    done = command(*arguments)
    assert done.returncode == 0
    assert "examples:" in done.stdout


def test_version():
    assert command("--version").stdout.startswith("m3-runtime 0.")


def test_a_reader_that_goes_away(tiny_bundle, tmp_path):
    (tmp_path / "in.txt").write_text("some words\n" * 3000)
    script = f'"{sys.executable}" -m m3_runtime encode "$1" "$2" --variant onnx-fp32 | head -n 1'
    done = subprocess.run(
        ["bash", "-c", script, "bash", tiny_bundle, tmp_path / "in.txt"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert len(records(done.stdout)) == 1
    assert done.stderr == ""


def test_interrupted(tiny_bundle, tmp_path):
    out = tmp_path / "out" / "vectors.jsonl"
    out.parent.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "m3_runtime", "encode", tiny_bundle, "-", "-o", out],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    wait_until(lambda: any(out.parent.iterdir()))  # it waits for input once the temporary file is there
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert stderr == "m3-runtime: interrupted\n"
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("link", ["same", "symlink", "hard link", "spelling", "standard output"])
@pytest.mark.parametrize("words", [("encode",), ("score", "--pairs")])
def test_no_command_writes_over_its_input(tiny_bundle, tmp_path, words, link):
    source, target = tmp_path / "in.tsv", tmp_path / "other.tsv"
    source.write_text("text\tpassage\n")
    match link:
        case "symlink":
            target.symlink_to(source)
        case "hard link":
            target.hardlink_to(source)
        case _:
            target = source if link != "spelling" else f"{tmp_path}/../{tmp_path.name}/in.tsv"
    name, *option = words
    arguments = [name, tiny_bundle, *option, source, "--variant", "onnx-fp32", "--threads", 1]
    if link == "standard output":
        line = [sys.executable, "-m", "m3_runtime", *map(str, arguments)]
        with source.open("a") as file:
            done = subprocess.run(line, stdout=file, stderr=subprocess.PIPE, text=True, check=False, timeout=PATIENCE_S)
    else:
        done = command(*arguments, "-o", target)
    assert done.returncode == 2
    assert "would be written over; choose another" in done.stderr
    assert source.read_text() == "text\tpassage\n"


def test_no_file_of_the_bundle_is_written_over(tiny_bundle):
    before = (tiny_bundle / "config.json").read_bytes()
    done = encode(tiny_bundle, "-o", tiny_bundle / "config.json", text="a\n")
    assert done.returncode == 2
    assert "would be written over" in done.stderr
    assert (tiny_bundle / "config.json").read_bytes() == before


def test_columns_by_name(tiny_bundle, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text('key;body\n7;"a\nb"\n')
    done = encode(tiny_bundle, source, "--text", "body", "--id", "key")
    assert done.returncode == 0, done.stderr
    assert [record["id"] for record in records(done.stdout)] == ["7"]
    done = encode(tiny_bundle, source)
    assert done.returncode == 2
    assert "has no column 'text'" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.txt", ""), ("empty.jsonl", "\n"), ("empty.json", "[]"), ("header.csv", "id,text\n"),
        ("none.txt.gz", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["jsonl", "npz"])
def test_an_input_without_a_row_is_no_success(tiny_bundle, tmp_path, name, content, form):
    path, out = tmp_path / name, tmp_path / "vectors"
    path.write_bytes(gzip.compress(b"") if content is None else content.encode())
    done = encode(tiny_bundle, path, "--format", form, "-o", out)
    assert (done.returncode, done.stderr) == (2, f"m3-runtime: {str(path)!r} has no texts to encode\n")
    assert not out.exists()


def test_no_rows_on_standard_input_are_no_success(tiny_bundle):
    done = encode(tiny_bundle)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "m3-runtime: standard input has no texts to encode\n"
    done = command("score", tiny_bundle, "--pairs", "-", "--variant", "onnx-fp32", "--threads", 1, text="\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "m3-runtime: standard input has no pairs to score\n"


@pytest.mark.parametrize(
    "words", [("encode",), ("score", "--pairs", "-"), ("info",), ("serve",), ("bulk", "-o", "out")]
)
@pytest.mark.parametrize("flaw", ["missing", "no bundle", "damaged", "no such variant"])
def test_a_wrong_bundle_is_wrong_input(bundle_copy, tmp_path, monkeypatch, words, flaw):
    monkeypatch.chdir(tmp_path)
    verb, *more = words
    (tmp_path / "texts.txt").write_text("a text\n")
    if verb == "bulk":
        more.append("texts.txt")
    if flaw == "no such variant":
        more += [] if verb == "info" else ["--variant", "onnx-fp7"]
    bundle = {"missing": tmp_path / "missing", "no bundle": tmp_path}.get(flaw, bundle_copy)
    if flaw == "damaged" or verb == "info":
        (bundle_copy / "manifest.json").unlink()  # a link to the one of all tests
        (bundle_copy / "manifest.json").write_text("{}")
    done = command(verb, bundle, *more, text="a\n")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("m3-runtime: ")
