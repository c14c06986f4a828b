"""Recorded vectors: the file gives back what went in, and nothing damaged."""

from dataclasses import replace

import numpy as np
import pytest

from m3_bench.documents import Model, Run
from m3_bench.errors import DocumentError
from m3_bench.machine import this_machine
from m3_bench.recording import (
    Recording,
    digest_of,
    read_outputs,
    read_recording,
    write_outputs,
    write_recording,
)
from m3_export.verify.parity import Outputs

TEXTS = ("eins", "", "三")
RUN = Run(this_machine(), Model("m", "m3-1", "2" * 64, 1.0), 2, (0, 1), digest_of(TEXTS), (), ())


def outputs(seed: int = 0) -> Outputs:
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal((count, 4), dtype=np.float32) for count in (3, 1, 2)]
    return Outputs(rng.standard_normal((3, 8), dtype=np.float32), [{5: 0.5, 7: 0.25}, {}, {9: 1.5}], rows)


def test_a_reference_comes_back(tmp_path):
    write_recording(Recording(RUN, TEXTS, outputs()), tmp_path / "r.safetensors")
    found = read_recording(tmp_path / "r.safetensors")
    assert (found.run, found.texts, found.ids) == (RUN, TEXTS, ())
    np.testing.assert_array_equal(found.outputs.dense, outputs().dense)
    assert found.outputs.lexical == outputs().lexical
    for got, expected in zip(found.outputs.colbert, outputs().colbert, strict=True):
        np.testing.assert_array_equal(got, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["r.safetensors"]


def test_dense_only_stays_dense_only(tmp_path):
    write_outputs(Outputs(outputs().dense, None, None), tmp_path / "o.safetensors")
    found = read_outputs(tmp_path / "o.safetensors")
    assert (found.lexical, found.colbert) == (None, None)


def test_vectors_alone_are_no_reference(tmp_path):
    write_outputs(outputs(), tmp_path / "o.safetensors")
    with pytest.raises(DocumentError, match="is no reference of m3-bench record"):
        read_recording(tmp_path / "o.safetensors")


def test_nan_is_refused(tmp_path):
    bad = outputs()
    bad.dense[1, 2] = np.nan
    write_outputs(bad, tmp_path / "o.safetensors")
    with pytest.raises(DocumentError, match="dense holds NaN or infinity"):
        read_outputs(tmp_path / "o.safetensors")


def test_a_text_too_few_is_named(tmp_path):
    write_recording(Recording(RUN, TEXTS[:2], outputs()), tmp_path / "r.safetensors")
    with pytest.raises(DocumentError, match="holds 2 texts but vectors of 3"):
        read_recording(tmp_path / "r.safetensors")


def test_ids_come_back_and_one_too_few_is_named(tmp_path):
    write_recording(Recording(RUN, TEXTS, outputs(), ("a", "7", "三")), tmp_path / "r.safetensors")
    assert read_recording(tmp_path / "r.safetensors").ids == ("a", "7", "三")
    write_recording(Recording(RUN, TEXTS, outputs(), ("a", "7")), tmp_path / "r.safetensors")
    with pytest.raises(DocumentError, match="holds 3 texts but 2 ids"):
        read_recording(tmp_path / "r.safetensors")


def test_a_damaged_or_missing_file_is_named(tmp_path):
    path = tmp_path / "r.safetensors"
    write_recording(Recording(RUN, TEXTS, outputs()), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DocumentError, match=r"r\.safetensors.* cannot be read"):
        read_recording(path)
    with pytest.raises(DocumentError, match="cannot be read"):
        read_outputs(tmp_path / "none.safetensors")


def test_a_newer_schema_is_named(tmp_path):
    newer = replace(RUN, schema_version=99)
    write_recording(Recording(newer, TEXTS, outputs()), tmp_path / "r.safetensors")
    with pytest.raises(DocumentError, match="schema version 99, this release reads 1; upgrade"):
        read_recording(tmp_path / "r.safetensors")
