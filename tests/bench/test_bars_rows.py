from itertools import pairwise

import pytest

from m3_bench.bars.rows import (
    ALL_HEADS,
    BY_LENGTH,
    EQUAL,
    MIXED,
    TOGETHER,
    Column,
    Contender,
    Measure,
    Planned,
    column_of,
    mixed_lengths,
    regret_row,
    rows_for,
)
from m3_runtime.cpu import CpuInfo

OURS = {Contender.BEST, Contender.ONNX_INT8, Contender.ONNX_FP32}
ROWS = rows_for(Column.VNNI)


def test_names_are_for_the_command_line_and_the_same_everywhere():
    for column in Column:
        names = [row.name for row in rows_for(column)]
        assert names == [row.name for row in ROWS]
        assert len(set(names)) == len(names)
        assert not [name for name in names if "," in name or " " in name]


@pytest.mark.parametrize(
    ("flags", "column"),
    [
        ({"avx2"}, Column.AVX2),
        ({"avx2", "avx512_vnni", "avx512_bf16"}, Column.VNNI),  # Zen 4
        ({"avx2", "avx512_vnni", "avx_vnni"}, Column.WIDE_VNNI),  # Zen 5
        ({"avx2", "avx_vnni"}, Column.VNNI),
        ({"asimddp"}, Column.VNNI),
    ],
)
def test_the_processor_chooses_the_bars(flags, column):
    assert column_of(CpuInfo("", "", frozenset(flags))) is column


def test_a_better_processor_is_never_held_to_less_but_by_onnx_runtimes_share():
    limits = [
        {bar.what: bar.limit for row in rows_for(column) for bar in row.bars if not bar.measure.is_memory}
        for column in Column
    ]
    for weaker, stronger in pairwise(limits):
        lower = [what for what in weaker if stronger[what] < weaker[what]]
        assert lower == ([] if stronger is limits[2] else ["onnx-int8, share of its engine's ceiling"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_first_side_is_ours_and_all_heads_run_unless_the_other_has_one_only(row):
    assert row.sides[0].contender in OURS
    assert not row.sides[0].is_optional
    odd = [side.workload.heads for side in row.sides if side.workload.heads != ALL_HEADS]
    assert odd == ([("dense",), ("dense",)] if row.name.startswith("llama") else [])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_contenders_have_the_same_work(row):
    """What is compared by speed does the same texts; only two rows are about how texts are batched."""
    ours, *others = (side for side in row.sides if any(side.workload.lengths))
    is_same = {side.workload.lengths for side in others} <= {ours.workload.lengths}
    assert is_same is (row.name not in ("mixed", "packed"))


def test_packed_and_by_length_are_the_same_lengths():
    tokens = [sorted(length for batch in one.lengths for length in batch) for one in (TOGETHER, BY_LENGTH)]
    assert tokens[0] == tokens[1]
    assert all(len(set(batch)) == 1 for batch in BY_LENGTH.lengths)


def test_a_regret_row_holds_the_chosen_plan_against_the_others():
    chosen, other = Planned("mine", "onnx-int8"), Planned("all-dynamic", "onnx-int8")
    row = regret_row(chosen, (other,))
    assert [side.contender for side in row.sides] == [chosen, other]
    assert row.name == "regret-onnx-int8"
    assert row.bars[0].is_met_by(1.03)
    assert not row.bars[0].is_met_by(1.04)


def test_the_mixed_corpus_is_seeded_and_within_its_lengths():
    assert mixed_lengths(500, 5, 600) == mixed_lengths(500, 5, 600)
    assert mixed_lengths(500, 5, 600) != mixed_lengths(500, 5, 600, seed=1)
    assert min(mixed_lengths(5000, 5, 600)) == 5
    assert max(mixed_lengths(5000, 5, 600)) == 600


def test_equal_lengths_have_the_mixed_corpus_mean():
    (mixed,), (equal,) = MIXED.lengths, EQUAL.lengths
    assert len(mixed) == len(equal)
    assert len(set(equal)) == 1
    assert abs(sum(mixed) - sum(equal)) <= len(mixed) / 2


def test_memory_and_regret_are_held_down_and_speed_up():
    for bar in (bar for row in ROWS for bar in row.bars):
        assert bar.is_met_by(bar.limit)
        assert bar.is_met_by(bar.limit * 0.99) is bar.measure.is_at_most
    assert [one for one in Measure if one.is_at_most] == [Measure.REGRET, Measure.PEAK_BYTES, Measure.RESIDENT_BYTES]
