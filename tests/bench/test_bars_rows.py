import pytest

from m3_bench.bars.rows import ALL_HEADS, EQUAL, MIXED, ROWS, Contender, Measure, mixed_lengths

OURS = {Contender.BALANCED, Contender.STRICT, Contender.ONNX_INT8, Contender.ONNX_FP32}


def test_names_are_for_the_command_line():
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)
    assert not [name for name in names if "," in name or " " in name]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_first_side_is_ours_and_all_heads_run_unless_that_is_the_point(row):
    assert row.sides[0].contender in OURS
    assert not row.sides[0].optional
    odd = [side.workload for side in row.sides if side.workload.heads != ALL_HEADS]
    assert [workload.heads for workload in odd] == ([("dense",)] if row.name == "dense" else [])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_contenders_have_the_same_work(row):
    """What is compared by speed does the same texts; only the mixed corpus is about other lengths."""
    ours, *others = (side for side in row.sides if any(side.workload.lengths))
    if row.name != "mixed":
        assert {side.workload.lengths for side in others} <= {ours.workload.lengths}
    else:
        assert [others[0].workload.lengths] != [ours.workload.lengths]


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


def test_memory_is_held_down_and_speed_up():
    for bar in (bar for row in ROWS for bar in row.bars):
        assert bar.is_met_by(bar.limit)
        assert bar.is_met_by(bar.limit * 0.99) is bar.measure.is_memory
    assert [measure for measure in Measure if measure.is_memory] == [Measure.PEAK_BYTES, Measure.RESIDENT_BYTES]
