"""From stored raw values to the table and the JSON."""

import json

import pytest

from m3_bench.bars import table as report
from m3_bench.bars.holding import Held
from m3_bench.bars.measure import RowRun, SideRun
from m3_bench.bars.rows import FIRST, Column, Planned, regret_row, rows_for
from m3_bench.bars.stats import Turn
from m3_bench.bars.table import Outcome, Report, RowReport
from m3_bench.machine import this_machine
from m3_runtime import Bundle

NAMED = {row.name: row for row in rows_for(Column.VNNI)}
FLOP = 604e6


def stored(name: str, *sides: list[Turn], dense: tuple[tuple[float, ...], ...] = ()) -> RowReport:
    row = NAMED[name]
    vectors = dense or ((),) * len(sides)
    runs = [
        SideRun(side, {"onnxruntime": "1.32.0"}, vector, tuple(turns))
        for side, vector, turns in zip(row.sides, vectors, sides, strict=False)
    ]
    return RowReport(row, Outcome.MEASURED, RowRun(row, tuple(runs)))


def batches(*seconds: float) -> list[Turn]:
    return [Turn((s,), (2048.0,), 9 * 10**8, 10**9) for s in seconds]


def test_a_met_bar():
    (line,) = report.table_lines(stored("lite", batches(1.0, 1.1), batches(4.0, 4.4)), FLOP)
    assert line == (
        "| ours ÷ bge-m3-lite int8, 16 texts of 128 tokens | ≥ 3.00 | 4.00 | 4.00 | yes "
        "| ours 1955 tokens/s; bge-m3-lite int8 489 tokens/s |"
    )


def test_the_median_decides_not_the_best_round():
    row = stored("lite", batches(1.0, 2.0, 2.0), batches(4.0, 4.0, 4.0))
    (result,) = report.results(row.run, FLOP)
    assert result.figure.best == pytest.approx(4.0)
    assert result.figure.median == pytest.approx(2.0)
    assert not result.is_met


def test_a_row_of_two_bars_has_two_lines():
    ours = [Turn((25.0,), (8192.0,), 10**9, 1_250_000_000)]
    theirs = [Turn((50.0,), (8192.0,), 10**9, 1_130_000_000)]
    time_line, memory_line = report.table_lines(stored("lite-long", ours, theirs), FLOP)
    assert "| ≥ 2.20 | 2.00 | 2.00 | no |" in time_line
    assert "ours 25.00 s; bge-m3-lite int8 50.00 s" in time_line
    assert "| ≤ 1300 MB | 1250 MB | 1250 MB | yes |" in memory_line


def test_the_ceiling_reads_in_operations_per_second():
    product = [Turn((0.01,) * 10, (2.0 * 2048 * 1024 * 4096,) * 10, 0, 0)]
    (line,) = report.table_lines(stored("ceiling", batches(1.0), product), FLOP)
    assert "int8 GEMM on ONNX Runtime 1.718 TOP/s" in line
    assert "| ≥ 0.85 | 0.72 | 0.72 | no |" in line


def test_regret_is_against_the_fastest_that_holds(tiny_bundle):
    names = ("mine", "quick", "wrong")
    mine, quick, wrong = (Planned(name, "onnx-int8") for name in names)
    row = regret_row(mine, (quick, wrong))
    parity = Bundle.open(tiny_bundle).manifest.parity["onnx-int8"]
    held = {one: Held(parity, (0.999,), ()) for one in (mine, quick)} | {wrong: Held(parity, (0.9,), ("too far",))}
    seconds = {mine: 3.0, quick: 2.0, wrong: 1.0}
    sides = tuple(
        SideRun(side, {}, (), (Turn((seconds[side.contender],) * 3, (16.0, 128.0, 2048.0), 0, 0),))
        for side in row.sides
    )
    found = RowReport(row, Outcome.MEASURED, RowRun(row, sides, held))
    (line,) = report.table_lines(found, FLOP)
    assert "| ≤ 1.03 | 1.50 | 1.50 | no | mine onnx-int8 5 · 43 · 683 tokens/s" in line
    assert "wrong onnx-int8 16 · 128 · 2048 tokens/s (does not hold: too far)" in line
    alone = RowReport(row, Outcome.MEASURED, RowRun(row, sides[:1], {mine: Held(parity, (0.9,), ("too far",))}))
    assert "| 1.00 | 1.00 | no |" in report.table_lines(alone, FLOP)[0]  # the fastest, and over its budget
    (as_json,) = report.as_json(Report(this_machine(), Column.VNNI, 1, FLOP, {}, {}, (found,)))["rows"]
    assert [side["held"]["excesses"] for side in as_json["sides"]] == [[], [], ["too far"]]


@pytest.mark.parametrize("outcome", [Outcome.NOT_APPLICABLE, Outcome.FAILED])
def test_what_was_not_measured_says_why_in_one_line(outcome):
    row = RowReport(NAMED["onnx-fp32"], outcome, reason="no bf16\n  on | this processor")
    (line,) = report.table_lines(row, FLOP)
    assert line.endswith(f"| ≥ 1.20 | – | – | {outcome} | no bf16 on / this processor |")


def test_the_json_holds_every_raw_value_and_the_machine(tmp_path):
    dense = ((0.6, 0.8), (0.8, 0.6))
    rows = (
        stored("lite", batches(1.0, 1.1), batches(4.0, 4.4), dense=dense),
        RowReport(NAMED["lite-start"], Outcome.FAILED, reason="why"),
    )
    path = tmp_path / "bars.json"
    path.write_text("old")
    report.write(
        Report(this_machine(), Column.VNNI, 2, FLOP, {"balanced": "m"}, {"calibration_texts": 573}, rows), path
    )
    found = json.loads(path.read_text())
    assert found["machine"]["cpu"] == this_machine().cpu
    assert (found["threads"], found["column"]) == (2, "int8 dot product")
    first, second = found["rows"]
    assert [side["turns"][1]["seconds"] for side in first["sides"]] == [[1.1], [4.4]]
    assert first["sides"][1]["dense_cosine_to_the_first_side"] == pytest.approx(0.96)
    assert first["results"][0]["is_met"] is True
    assert (second["outcome"], second["reason"], second["sides"]) == ("failed", "why", [])
    assert list(tmp_path.iterdir()) == [path]


def test_rounds_before_a_failure_are_kept_in_the_json_but_not_judged_in_the_table():
    measured = stored("lite-start", [Turn((1.0,), (1.0,), 6 * 10**8, 7 * 10**8)], [Turn((2.0,), (1.0,), 0, 0)])
    failed = RowReport(measured.row, Outcome.FAILED, measured.run, "the second round broke")
    lines = report.table_lines(failed, FLOP)
    assert all(line.endswith("| failed | the second round broke |") for line in lines)
    (row,) = report.as_json(Report(this_machine(), Column.VNNI, 1, FLOP, {}, {}, (failed,)))["rows"]
    assert row["sides"][0]["turns"][0]["seconds"] == (1.0,) or row["sides"][0]["turns"][0]["seconds"] == [1.0]
    assert row["sides"][0]["workload"] == FIRST.name
