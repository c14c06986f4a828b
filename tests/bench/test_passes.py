"""benchmarks/passes.py: what is left out is missing, nothing else is, and every contender still computes the same."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # scripts, not installed

import passes as script
from session_turns import LEAST_ROUNDS, Contender, measure, speed_table

MADE_BY = {
    "FuseAttention": "MultiHeadAttention",
    "PreventSkipLayerNorm": "Reshape",
    "KeepLastLayerRows": "Slice",
}


@pytest.fixture(scope="module")
def exporter(tiny_random_checkpoint: Path) -> Iterator[script.Exporter]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is tiny: threads that wait for each other take longer
    yield script.Exporter(tiny_random_checkpoint, layers=1, every=12)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def bench(exporter: script.Exporter, tmp_path_factory: pytest.TempPathFactory) -> script.Bench:
    return script.Bench(exporter, tmp_path_factory.mktemp("graphs"), [(1, 16)], seconds=0, threads=1)


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph))


def outputs(contender: Contender) -> list[np.ndarray]:
    return contender.open(threads=1).run(list(contender.outputs), contender.inputs((2, 12)))


@pytest.mark.parametrize("name", MADE_BY)
def test_a_pass_is_left_out_and_the_others_are_not(exporter: script.Exporter, name: str):
    whole, rest = operators(exporter.fp32()), operators(exporter.fp32([name]))
    for other, op_type in MADE_BY.items():
        assert (rest[op_type] < whole[op_type]) == (other == name), other


def test_layers_are_cut(exporter: script.Exporter):
    assert operators(exporter.fp32())["Gelu"] == exporter.layers == 1


def test_passes_are_back_in_their_places_afterwards(exporter: script.Exporter):
    before = operators(exporter.fp32())
    exporter.fp32(script.FOR_SPEED)
    assert operators(exporter.fp32()) == before


@pytest.mark.parametrize("name", [*script.FOR_SPEED, "ShiftBiases", "CentreActivations"])
def test_what_is_left_out_changes_no_result_but_by_rounding(bench: script.Bench, name: str):
    for precision, atol in (("fp32", 1e-5), ("int8", 0.1)):
        whole = outputs(bench.contender("all", precision))
        rest = outputs(bench.contender(name, precision, [name]))
        for expected, got in zip(whole, rest, strict=True):
            np.testing.assert_allclose(got, expected, atol=atol)


def test_the_masked_branch_is_taken_where_a_token_is_padding(bench: script.Bench):
    padded = Contender("padded", bench.graph("fp32"), {}, padded=True)
    feed = padded.inputs((2, 12))
    assert feed["attention_mask"].sum() == 23
    alone = padded.open(1).run(None, {name: array[-1:, :-1] for name, array in feed.items()})
    together = padded.open(1).run(None, feed)
    np.testing.assert_allclose(together[0][-1:], alone[0], atol=1e-5)


def test_a_speed_table_has_a_row_for_each_contender_and_one_for_the_noise(bench: script.Bench):
    field = [bench.contender("ours", "fp32"), bench.contender("other", "fp32", ["FuseAttention"])]
    lines = speed_table(field, [(1, 16), (2, 8)], 0, 1, memory=False)
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| ours", "| ours, once more", "| other"]
    assert all(line.count("|") == lines[0].count("|") for line in lines[:5])


def test_contenders_take_turns(bench: script.Bench):
    field = [bench.contender(name, "fp32") for name in ("a", "b")]
    times = measure(field, (1, 16), seconds=0, threads=1)
    assert {name: len(found) for name, found in times.items()} == {"a": LEAST_ROUNDS, "b": LEAST_ROUNDS}
    assert min(seconds for found in times.values() for seconds in found) > 0


def test_accuracy_tells_what_int8_loses(bench: script.Bench):
    rows = [line.split(" | ") for line in bench.accuracy()]
    assert [row[0] for row in rows[2:6]] == ["| all passes", *(f"| without {name}" for name in script.FOR_INT8)]
    assert all(0.9 < float(row[1]) < 1 for row in rows[2:6])
