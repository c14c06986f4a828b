"""Rows on the tiny bundle, in real processes."""

from dataclasses import replace
from pathlib import Path

import pytest

from m3_bench.bars import contenders, holding
from m3_bench.bars.measure import measure_row
from m3_bench.bars.rows import Bar, Column, Contender, Measure, Planned, Row, Side, Workload, regret_row, rows_for
from m3_bench.bars.unseen import degenerate_texts, natural_texts
from m3_bench.errors import BenchError, NotApplicableError, WorkerError
from m3_bench.worker_process import Command
from m3_export.calibration.texts import calibration_texts, probe_texts
from m3_runtime.cpu import CpuInfo

NAMED = {row.name: row for row in rows_for(Column.AVX2)}
PLAIN = CpuInfo("plain", "x86_64", frozenset({"avx2"}))
SHORT = Workload("short", ((5, 7), (16,)))


def pair(first: Contender, second: Contender, workload: Workload = SHORT, **more) -> Row:
    return Row("pair", (Side(first, workload), Side(second, workload)), (Bar("", Measure.SPEED, 1.0),), **more)


def test_a_row_has_a_turn_a_side_a_round(setup, texts):
    seen = list(measure_row(pair(Contender.ONNX_FP32, Contender.ONNX_INT8), setup, texts, rounds=2))
    assert [[len(side.turns) for side in run.sides] for run in seen] == [[1, 1], [2, 2]]
    for side in seen[-1].sides:
        assert {turn.work for turn in side.turns} == {(12.0, 16.0)}
        assert side.versions["onnxruntime"]
    assert seen[-1].dense_cosine(0) == pytest.approx(1.0)
    assert 0.9 < seen[-1].dense_cosine(1) < 1.0  # the same weights, in INT8


def test_texts_are_no_longer_than_the_model_takes(setup, texts):
    long = replace(NAMED["lite-long"], sides=(NAMED["lite-long"].sides[0],))
    (run,) = measure_row(long, setup, texts, rounds=1)
    assert run.sides[0].turns[0].work == (512.0,)
    assert run.sides[0].turns[0].peak_bytes > 0


def test_a_start_is_a_process_a_turn(setup, texts):
    row = pair(Contender.ONNX_FP32, Contender.ONNX_INT8, Workload("", ((16,),)), is_start=True)
    *_, run = measure_row(row, setup, texts, rounds=2)
    for side in run.sides:
        assert [turn.work for turn in side.turns] == [(1.0,), (1.0,)]
        # Python and its packages alone take longer than that; encoding 16 tokens of the tiny model does not
        assert all(turn.seconds[0] > 0.05 for turn in side.turns)


def test_the_ceiling_is_measured_beside_encoding(setup, texts, monkeypatch):
    monkeypatch.setattr(contenders, "cpu_info", lambda: PLAIN)
    (run,) = measure_row(NAMED["ceiling"], setup, texts, rounds=1)
    assert [side.side.contender for side in run.sides] == [Contender.BEST, Contender.GEMM_ONNXRUNTIME]
    assert run.sides[1].turns[0].work == (2.0 * 2048 * 1024 * 4096,) * 10
    assert run.dense_cosine(1) is None


def test_mixed_and_equal_lengths_are_of_one_contender(setup, texts):
    (run,) = measure_row(NAMED["mixed"], setup, texts, rounds=1)
    mixed, equal = (side.turns[0] for side in run.sides)
    assert mixed.work[0] == pytest.approx(equal.work[0], rel=0.1)
    assert run.dense_cosine(1) is None  # other texts


def test_what_a_processor_cannot_do_ends_the_row(setup, texts, monkeypatch):
    monkeypatch.setattr(contenders, "cpu_info", lambda: PLAIN)
    with pytest.raises(NotApplicableError, match="no int8 dot product"):
        list(measure_row(pair(Contender.BEST, Contender.GEMM_OPENVINO), setup, texts, rounds=1))


@pytest.mark.parametrize("contender", [Contender.LITE_INT8, Contender.LLAMA_CPP])
def test_peers_need_the_checkpoint(setup, contender, monkeypatch):
    monkeypatch.setattr(contenders, "ensure_environment", lambda *_: Path("python"))
    with pytest.raises(BenchError, match="--checkpoint DIR"):
        contenders.command_of(contender, setup)


def test_processes_work_at_the_same_time_and_count_together(setup, texts):
    sides = (Side(Contender.ONNX_FP32, SHORT, processes=2, threads=1), Side(Contender.ONNX_FP32, SHORT, threads=1))
    row = Row("two", sides, (Bar("", Measure.THROUGHPUT, 1.0),))
    (run,) = measure_row(row, setup, texts, rounds=1)
    two, one = (side.turns[0] for side in run.sides)
    assert (two.work, one.work) == ((56.0,), (12.0, 16.0))
    assert two.resident_bytes > 1.5 * one.resident_bytes


def test_a_regret_row_says_who_holds(setup, texts):
    mine, exact = Planned("mine", "onnx-int8"), Planned("mine", "onnx-fp32")
    (run,) = measure_row(regret_row(mine, (exact,)), setup, texts, rounds=1)
    assert [len(side.turns[0].seconds) for side in run.sides] == [3, 3]
    assert run.held_by(run.sides[1]).excesses == ()
    assert run.held[exact].natural.dense.cosine_min == pytest.approx(1.0)
    assert 0.5 < run.held[mine].natural.dense.cosine_min < 1.0
    assert run.held[mine].natural.texts == len(natural_texts())


def test_a_plan_that_breaks_on_degenerate_texts_alone_does_not_hold(setup, monkeypatch):
    """Whatever the plan does to the empty text is what its lowest cosine says."""
    monkeypatch.setattr(holding, "degenerate_texts", lambda: ("", "x"))

    def broken(one, texts, setup):
        found = outputs(one, texts, setup)
        if one.variant == "onnx-int8":
            found.dense[-2] = -found.dense[-2]
        return found

    outputs = holding._outputs
    monkeypatch.setattr(holding, "_outputs", broken)
    (held,) = holding.holding([Planned("mine", "onnx-int8")], setup).values()
    assert held.degenerate[0] < -0.9
    assert any("of 2 degenerate texts below" in one for one in held.excesses)


def test_unseen_texts_are_neither_calibration_nor_probe_texts():
    known = {text.text for text in (*calibration_texts(), *probe_texts())}
    assert not known & set(natural_texts())
    degenerate = degenerate_texts()
    assert degenerate == degenerate_texts()
    assert {"", " "} <= set(degenerate)
    assert max(map(len, degenerate)) > 1000


def test_a_contender_that_counts_other_tokens_is_refused(setup, texts, monkeypatch):
    """Other tokens are other work: the ratio would be of nothing."""

    def command_of(contender, setup):
        command = contenders.command_of(Contender.ONNX_FP32, setup)
        return Command(command.python, "m3_bench.workers.gemm", ("onnxruntime", "--threads", "1"))

    monkeypatch.setattr("m3_bench.bars.measure.command_of", command_of)
    with pytest.raises(WorkerError, match=r"counted .* where \(12.0, 16.0\) were asked for"):
        list(measure_row(pair(Contender.ONNX_FP32, Contender.ONNX_INT8), setup, texts, rounds=1))
