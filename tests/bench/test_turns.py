"""The engine, on the tiny bundle and in real processes."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from m3_bench.documents import Scenario
from m3_bench.run.contenders import product, variants_of
from m3_bench.run.turns import PRODUCTS_PER_ROUND, measure_group
from m3_bench.worker_process import Command
from m3_runtime import Bundle

GEMM = product("GEMM", "onnxruntime", "int8", threads=1, rows=16)
SHORT = Scenario("short", "", (5, 7), ("dense", "sparse", "colbert"), calls=2)


@pytest.fixture
def fp32(tiny_bundle):
    ((contender, _),) = variants_of(Bundle.open(tiny_bundle), ["onnx-fp32"], 1)
    return contender


def test_a_round_has_every_call_and_the_warm_up_is_none(fp32, texts):
    found = measure_group([SHORT], [fp32], texts, rounds=2, threads=1)["short", "onnx-fp32"]
    assert [len(one.seconds) for one in found.rounds] == [2, 2]
    assert min(found.load_s, found.first_s) > 0
    assert all(one.peak_bytes >= one.resident_bytes > 10_000_000 for one in found.rounds)


def test_a_start_is_a_process_a_round(fp32, texts):
    scenario = replace(SHORT, lengths=(16,), calls=1, is_start=True)
    found = measure_group([scenario], [fp32], texts, rounds=2, threads=1)["short", "onnx-fp32"]
    # Python and its packages alone take longer than that; encoding 16 tokens of the tiny model does not
    assert all(one.seconds[0] > 0.05 for one in found.rounds)
    assert [len(one.seconds) for one in found.rounds] == [1, 1]


def test_scenarios_of_a_group_take_turns_and_the_slowest_limits_the_rounds(fp32, texts):
    two = replace(SHORT, name="two", group="g", processes=2, threads=1)
    one = replace(SHORT, name="one", group="g", threads=1, most_rounds=1)
    found = measure_group([two, one], [fp32], texts, rounds=3, threads=2)
    assert [len(each.rounds) for each in found.values()] == [1, 1]
    (both,), (alone,) = (found[name, "onnx-fp32"].rounds for name in ("two", "one"))
    assert (len(both.seconds), len(alone.seconds)) == (4, 2)
    assert both.resident_bytes > 1.5 * alone.resident_bytes
    assert both.wall_s >= max(both.seconds)


def test_texts_go_by_length_where_a_scenario_asks(fp32, texts):
    scenario = replace(SHORT, lengths=(7, 5, 7), by_length=True)
    (one,) = measure_group([scenario], [fp32], texts, rounds=1, threads=1)["short", "onnx-fp32"].rounds
    assert len(one.seconds) == 4


def test_products_take_turns_with_who_encodes(fp32, texts):
    scenario = replace(SHORT, contenders=("onnx-fp32", "GEMM"))
    found = measure_group([scenario], [fp32, GEMM], texts, rounds=1, threads=1)
    assert len(found["short", "GEMM"].rounds[0].seconds) == PRODUCTS_PER_ROUND
    assert measure_group([SHORT], [GEMM], texts, rounds=1, threads=1) == {}  # asked for only where it is named


def test_who_is_not_named_is_not_asked(fp32, texts):
    assert measure_group([replace(SHORT, contenders=("others",))], [fp32], texts, rounds=1, threads=1) == {}


def test_a_contender_that_fails_is_named_and_the_others_go_on(fp32, texts):
    broken = replace(fp32, name="broken", command=Command(Path(sys.executable), "no.such.module", {}))
    found = measure_group([SHORT], [broken, fp32], texts, rounds=1, threads=1)
    assert "broken ended with exit code 1" in found["short", "broken"].error
    assert found["short", "broken"].rounds == ()
    assert found["short", "onnx-fp32"].error == ""
    assert len(found["short", "onnx-fp32"].rounds) == 1


def test_a_contender_that_counts_other_tokens_is_refused(fp32, texts):
    """Other tokens are other work: the ratio would be of nothing."""
    other = replace(fp32, command=GEMM.command)
    error = measure_group([SHORT], [other], texts, rounds=1, threads=1)["short", "onnx-fp32"].error
    assert "counted 134217728 tokens where 12 were asked for" in error
