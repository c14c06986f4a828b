"""`m3-bench compare` on stored runs: what belongs together is compared, what does not is refused."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from stored import samples

from m3_bench import documents
from m3_bench.cli import main
from m3_bench.compare import compare
from m3_bench.documents import Comparison, Prices, Run
from m3_bench.errors import DocumentError
from m3_bench.recording import digest_of, read_recording, write_outputs, write_recording
from m3_export.verify.parity import Outputs
from m3_runtime.bundle.reader import sha256_of
from m3_runtime.io.progress import Progress

QUIET = Progress(quiet=True)


def compared(written: samples.Written, *more: Path) -> Comparison:
    return compare(written.reference, [written.run, *more], Prices(), QUIET)


@pytest.fixture
def written(tmp_path: Path) -> samples.Written:
    """A reference and a run with vectors."""
    return samples.write_both(tmp_path)


def changed(written: samples.Written, **keys) -> samples.Written:
    """The run with other values."""
    documents.write(replace(documents.read_as(Run, written.run), **keys), written.run)
    return written


def with_outputs(written: samples.Written, outputs: Outputs) -> samples.Written:
    """The run whose first contender gave other vectors."""
    run = documents.read_as(Run, written.run)
    first, *others = run.contenders
    assert first.outputs is not None
    path = written.run.parent / first.outputs.path
    write_outputs(outputs, path)
    first = replace(first, outputs=replace(first.outputs, sha256=sha256_of(path)))
    return changed(written, contenders=(first, *others))


def test_parity_is_that_of_the_vectors(written):
    found = {one.contender: one for one in compared(written).parity}
    same, near, far = found["PyTorch fp32"], found["onnx-fp32"], found["peer int8"]
    assert same.dense.cosine_min == same.sparse.jaccard_min == same.colbert.cosine_min == 1.0
    assert near.dense.cosine_min > 0.999999
    assert far.dense.cosine_mean < found["openvino-int8"].dense.cosine_mean < near.dense.cosine_mean
    # the per-text values are those that the summary is of
    assert np.mean(far.texts.dense) == pytest.approx(far.dense.cosine_mean, abs=1e-7)
    assert min(far.texts.dense) == far.dense.cosine_min
    assert min(far.texts.jaccard) == far.sparse.jaccard_min
    assert len(far.texts.colbert) == len(samples.TEXTS)


def test_per_text_colbert_is_the_mean_of_its_rows(written):
    reference, kept = samples.reference_outputs(), samples.reference_outputs()
    kept.colbert[3][0] *= -1  # one row turned around: cosine -1
    found = compared(with_outputs(written, kept)).parity[0]
    rows = len(reference.colbert[3])
    assert found.texts.colbert[3] == pytest.approx((rows - 2) / rows, abs=1e-6)
    assert found.texts.colbert[4] == 1.0


def test_the_document_holds_every_raw_value_and_is_read_again(written, tmp_path):
    found = compared(written)
    documents.write(found, tmp_path / "c.json")
    again = documents.read_as(Comparison, tmp_path / "c.json")
    assert again == found
    assert again.runs == (documents.read_as(Run, written.run),)
    assert [source.name for source in again.sources] == ["gpu.safetensors", "run.json"]
    assert again.sources[1].sha256 == sha256_of(written.run)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"space_id": "00" * 32}, "(vector space '0000000000000000', weights 'a1a1"),
        ({"weights_sha256": "00" * 32}, "weights '0000000000000000')"),
    ],
)
def test_another_checkpoint_is_refused(written, model, message):
    run = documents.read_as(Run, written.run)
    with pytest.raises(DocumentError, match=r"run\.json.* is of another checkpoint") as error:
        compared(changed(written, model=replace(run.model, **model)))
    assert message in str(error.value)
    assert "record a reference of the same checkpoint" in str(error.value)


def test_other_texts_are_refused(written):
    with pytest.raises(DocumentError, match=r"kept vectors of different texts .* 48 texts"):
        compared(changed(written, texts_sha256=digest_of(("a", "b"))))


def test_a_reference_whose_texts_were_changed_is_refused(written):
    recording = read_recording(written.reference)
    write_recording(replace(recording, texts=(*recording.texts[:-1], "another")), written.reference)
    with pytest.raises(DocumentError, match="does not hold the texts of its digest"):
        compared(written)


def test_fewer_texts_are_refused(written):
    with pytest.raises(DocumentError, match="has vectors of 40 texts, the reference of 48"):
        compared(with_outputs(written, samples.reference_outputs(40)))


def test_other_dimensions_and_other_rows_are_refused(written):
    kept = samples.reference_outputs()
    with pytest.raises(DocumentError, match="dense vectors of 32 numbers, the reference of 64"):
        compared(with_outputs(written, replace(kept, dense=kept.dense[:, :32])))
    short = [rows[:-1] if n == 5 else rows for n, rows in enumerate(kept.colbert)]
    with pytest.raises(DocumentError, match="text 5 has ColBERT vectors of shape"):
        compared(with_outputs(written, replace(kept, colbert=short)))


@pytest.mark.parametrize("name", ["dense", "sparse_weights", "colbert"])
def test_nan_is_refused_and_named(written, name):
    run = documents.read_as(Run, written.run)
    path = written.run.parent / run.contenders[0].outputs.path
    tensors = load_file(path)
    tensors[name].reshape(-1)[0] = np.nan
    save_file(tensors, path)
    outputs = replace(run.contenders[0].outputs, sha256=sha256_of(path))
    contenders = (replace(run.contenders[0], outputs=outputs), *run.contenders[1:])
    with pytest.raises(DocumentError, match=rf"run\.0\.safetensors.*: {name} holds NaN"):
        compared(changed(written, contenders=contenders))


def test_a_missing_head_is_left_out_and_named(written):
    kept = samples.reference_outputs()
    found = compared(with_outputs(written, replace(kept, lexical=None)))
    assert found.parity[0].sparse is None
    assert found.parity[0].texts.jaccard == ()
    assert found.parity[0].colbert is not None
    assert found.parity[1].sparse is not None
    assert "openvino-int8 in run.json has no sparse vectors: left out." in found.notes


def test_a_reference_without_heads_leaves_them_out_for_all(written):
    dense_only = replace(samples.reference_outputs(), lexical=None, colbert=None)
    samples.write_reference(written.reference.parent, samples.stored("gpu"), dense_only)
    found = compared(written)
    assert all(one.sparse is None and one.colbert is None and one.dense is not None for one in found.parity)
    assert "The reference has no colbert vectors: left out." in found.notes


def test_missing_and_exchanged_vectors_are_refused(written):
    path = written.run.parent / "run.0.safetensors"
    kept = path.read_bytes()
    path.write_bytes((written.run.parent / "run.1.safetensors").read_bytes())
    with pytest.raises(DocumentError, match=r"run\.0\.safetensors.* is not what .*run\.json.* wrote: SHA-256"):
        compared(written)
    path.unlink()
    with pytest.raises(DocumentError, match=r"run\.0\.safetensors.* is missing"):
        compared(written)
    path.write_bytes(kept)
    assert compared(written).parity


def test_a_run_without_vectors_has_speed_alone_and_says_so(written):
    run = documents.read_as(Run, written.run)
    contenders = tuple(replace(one, outputs=None) for one in run.contenders)
    found = compared(changed(written, contenders=contenders, texts_sha256=""))
    assert found.parity == ()
    assert "peer int8 in run.json kept no vectors: no parity." in found.notes


def test_a_newer_schema_is_named(written):
    data = json.loads(written.run.read_text())
    written.run.write_text(json.dumps(data | {"schema_version": 2}))
    with pytest.raises(DocumentError, match="schema version 2, this release reads 1; upgrade"):
        compared(written)


def test_runs_of_several_machines_are_refused(written, capsys):
    other = samples.stored("run")
    machine = replace(other.machine, cpu="Example CPU 4-Core", logical_cpus=4, flags=("avx2",))
    path = samples.write_run(written.run.parent, replace(other, machine=machine), "laptop.json")
    with pytest.raises(DocumentError, match="are of different machines") as error:
        compared(written, path)
    assert "processor Example CPU 8-Core and Example CPU 4-Core" in str(error.value)
    assert "logical CPUs 16 and 4" in str(error.value)
    assert main(words(written.reference, written.run, path, "--mixed-machines")) == 2
    assert "--mixed-machines is gone: compare the runs of each machine" in capsys.readouterr().err


def test_a_reference_of_another_processor_is_named_and_an_accelerator_is_by_its_nature(written):
    assert not any("of another machine" in note for note in compared(written).notes)
    reference = samples.stored("gpu")
    machine = replace(reference.machine, accelerator="")
    samples.write_reference(written.reference.parent, replace(reference, machine=machine))
    assert any(
        note.startswith("The reference is of another machine (Example Host CPU") for note in compared(written).notes
    )


def test_load_python_and_kernel_make_no_other_machine(written):
    run = samples.stored("run")
    machine = replace(run.machine, load_before=12.0, python="3.12.1", system="Linux 6.9")
    path = samples.write_run(written.run.parent, replace(run, machine=machine), "again.json")
    found = compared(written, path)
    assert any("again.json: the machine was busy before the run (load 12.0" in note for note in found.notes)


def test_one_name_for_two_scenarios_is_refused(written):
    run = samples.stored("run")
    scenarios = tuple(replace(one, lengths=(17,)) if one.name == "length-16" else one for one in run.scenarios)
    path = samples.write_run(written.run.parent, replace(run, scenarios=scenarios), "other.json")
    with pytest.raises(DocumentError, match="scenario 'length-16' is 1 text of 16 tokens"):
        compared(written, path)


def words(*more) -> list[str]:
    return ["compare", *map(str, more), "--quiet"]


def test_a_reader_that_is_gone_makes_the_command_fail_without_a_word(written, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert main(["compare", str(written.reference), str(written.run), "--quiet"]) == 1
    assert not capsys.readouterr().err


def test_the_command_prints_parity_speed_cost_and_doubts(written, tmp_path, capsys):
    out = tmp_path / "c.json"
    asked = words(written.reference, written.run, "-o", out, "--price", "cpu=0.36/h", "gpu=3.00/h", "--currency", "EUR")
    assert main(asked) == 0
    printed = capsys.readouterr().out
    found = documents.read_as(Comparison, out)
    assert found.prices == Prices("EUR", 0.36, 3.0)
    rounds = next(one.rounds for one in found.runs[0].contenders[0].scenarios if one.scenario == "batch-16")
    speed = sorted(2048 / one.seconds[0] for one in rounds)[2]
    row = next(
        line
        for line in printed.split("## 16 texts of 128 tokens")[1].splitlines()
        if line.startswith("| openvino-int8 |")
    )
    assert f"EUR {0.36 / (speed * 3600) * 1e6:.3g}" in row
    assert "| p99 |" not in printed.split("## 16 texts of 128 tokens")[1].splitlines()[2]  # of 5 calls
    assert "PyTorch fp32, length-8192: the worker was killed" in printed
    assert printed.count("## ") == 2 + len(found.runs[0].scenarios)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--price", "tpu=1/h"), "--price tpu=1/h: expected cpu=AMOUNT/h"),
        (("--price", "cpu=1"), "--price cpu=1: expected cpu=AMOUNT/h"),
        (("--price", "cpu=cheap/h"), "--price cpu=cheap/h: expected cpu=AMOUNT/h"),
        (("--price", "cpu=nan/h"), "--price cpu=nan/h: expected cpu=AMOUNT/h"),
        (("--price", "cpu=-1/h"), "--price cpu=-1/h: expected cpu=AMOUNT/h"),
        (("--price", "cpu=1/h", "cpu=2/h"), "is given twice"),
        (("--currency", "EUR"), "--currency is for --price, which is not given"),
        (("-o", "no/such/folder/c.json"), "does not exist; create it first"),
    ],
)
def test_wrong_words_are_named(written, capsys, more, message):
    assert main(words(written.reference, written.run, *more)) == 2
    assert message in capsys.readouterr().err


def test_an_input_is_not_written_over(written, capsys):
    before = written.run.read_bytes()
    assert main(words(written.reference, written.run, "-o", written.run)) == 2
    assert "would be written over; choose another" in capsys.readouterr().err
    assert written.run.read_bytes() == before


def test_an_older_comparison_is_replaced_only_by_force(written, tmp_path, capsys):
    out = tmp_path / "c.json"
    out.write_text("kept")
    assert main(words(written.reference, written.run, "-o", out)) == 2
    assert "pass --force to replace it" in capsys.readouterr().err
    assert out.read_text() == "kept"
    assert main(words(written.reference, written.run, "-o", out, "--force")) == 0
    assert documents.read_as(Comparison, out).parity


def test_what_is_no_reference_is_named(written, capsys):
    assert main(words(written.run, written.run)) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(words(written.reference.with_name("none.safetensors"), written.run)) == 2
    assert "none.safetensors" in capsys.readouterr().err
