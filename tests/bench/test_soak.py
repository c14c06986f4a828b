"""`m3-bench soak`: a server is started, loaded in cycles and ended; what grows or leaks is over a limit."""

from dataclasses import replace
from pathlib import Path

import pytest

from m3_bench import documents
from m3_bench.cli import main
from m3_bench.cycles import Cycle
from m3_bench.documents import Model, Soak
from m3_bench.errors import BenchError
from m3_bench.machine import this_machine
from m3_bench.report.build import build_page
from m3_bench.report.inputs import read_inputs
from m3_bench.stats import growth

QUICK = ("--variant", "onnx-fp32", "--phase-s", "0.12", "--warmup-minutes", "0", "--clients", "3")


def soak_of(*cycles: Cycle) -> Soak:
    return Soak(this_machine(), Model("m", "m3-1", "0"), "onnx-int8", {}, (), 8, 300.0, cycles)


def steady(count: int = 40) -> list[Cycle]:
    """Fifteen seconds each; memory grows by 50 MB at first, and then moves by 0.1 MB to and fro."""
    return [
        Cycle(15.0 * n, 500_000_000 + min(n, 10) * 5_000_000 + n % 3 * 100_000, 30 + n % 2, 20, 0, 90, 0, 40, 12, {})
        for n in range(1, count + 1)
    ]


def test_what_is_steady_is_under_every_limit():
    found = growth(soak_of(*steady()))
    assert abs(found.mb_per_hour) < 1
    assert found.over(1.0) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n, one: replace(one, resident_bytes=one.resident_bytes + 100_000 * n), "memory grows by 24.00 MB/h"),
        (lambda n, one: replace(one, descriptors=one.descriptors + n // 2), "descriptors leaked"),
        (lambda n, one: replace(one, threads=one.threads + n // 4), "threads leaked"),
        (lambda n, one: replace(one, wrong=int(n == 3)), "1 phases with a wrong answer"),
        (lambda n, one: replace(one, errors={"500": int(n == 3)}), "1 requests neither answered nor refused"),
    ],
)
def test_what_grows_leaks_or_is_wrong_is_named(change, words):
    (over,) = growth(soak_of(*(change(n, one) for n, one in enumerate(steady())))).over(1.0)
    assert words in over


def test_a_slope_needs_cycles():
    with pytest.raises(BenchError, match=r"7 cycles after 300 s: .* give --minutes more"):
        growth(soak_of(*steady(26)))


def test_a_server_is_loaded_and_its_document_is_a_chart(tiny_bundle: Path, tmp_path: Path, capsys):
    words = [*QUICK, "--minutes", "0.001", "--mb-per-hour", "-1000000000", "-o", str(tmp_path / "soak.json")]
    assert main(["soak", str(tiny_bundle), *words]) == 3
    assert "resident memory grows by" in capsys.readouterr().out
    found = documents.read_as(Soak, tmp_path / "soak.json")
    assert len(found.cycles) == 8
    assert sum(one.answered for one in found.cycles) > 100
    assert sum(one.refused for one in found.cycles) > 0
    assert [(one.wrong, one.errors) for one in found.cycles if one.wrong or one.errors] == []
    assert all(one.descriptors > 5 and one.peak_bytes >= one.resident_bytes > 10_000_000 for one in found.cycles)
    (section,) = build_page(read_inputs([tmp_path / "soak.json"])).sections
    assert section.charts and section.tables[0].rows[0][0].text == "onnx-fp32"


def test_a_soak_that_was_stopped_early_is_shown_without_a_slope(tmp_path: Path):
    documents.write(soak_of(*steady(3)), tmp_path / "soak.json")
    (section,) = build_page(read_inputs([tmp_path / "soak.json"])).sections
    (table,) = section.tables
    assert section.charts and table.rows[0][0].text == "onnx-int8"
    assert "MB/h" not in table.head
    documents.write(soak_of(), tmp_path / "none.json")
    assert build_page(read_inputs([tmp_path / "none.json"])).sections == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--warmup-minutes", "nan"), "expected a number from 0"),
        (("--warmup-minutes", "-1"), "expected a number from 0"),
        (("--mb-per-hour", "inf"), "expected a number from"),
        (("--minutes", "3", "--warmup-minutes", "3"), "--warmup-minutes 3 must be less than --minutes 3"),
    ],
)
def test_lengths_that_make_no_soak_are_refused(tmp_path: Path, capsys, words, message):
    try:
        code = main(["soak", str(tmp_path / "bundle"), "-o", str(tmp_path / "a.json"), *words])
    except SystemExit as ended:
        code = int(ended.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_server_that_does_not_start_is_an_error(tmp_path: Path, capsys):
    (tmp_path / "none").mkdir()
    assert main(["soak", str(tmp_path / "none"), "-o", str(tmp_path / "a.json")]) == 2
    assert "is not a bundle" in capsys.readouterr().err
