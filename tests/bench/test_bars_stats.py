"""Verdicts from stored values, worked out by hand."""

import pytest

from m3_bench.bars import stats
from m3_bench.bars.stats import Turn


def turns(*seconds: float, work: float = 2048.0) -> list[Turn]:
    """One batch a turn."""
    return [Turn((s,), (work,), 0, 0) for s in seconds]


def test_a_ratio_is_best_by_best_and_the_median_of_the_rounds():
    # 2048 tokens in 1.3 to 2 s, and in 4.2 to 5 s; in round 2 the machine was slow for both
    ours, theirs = turns(1.4, 2.0, 1.3), turns(4.2, 6.0, 5.2)
    figure = stats.speed_ratio(ours, theirs)
    assert figure.best == pytest.approx(4.2 / 1.3)
    assert figure.median == pytest.approx(3.0)  # of 3.0, 3.0 and 4.0


def test_slowness_of_both_in_a_round_leaves_the_median_alone():
    steady = stats.speed_ratio(turns(1, 1, 1), turns(3, 3, 3))
    disturbed = stats.speed_ratio(turns(1, 9, 1), turns(3, 27, 3))
    assert disturbed == steady


def test_other_work_is_compared_by_speed():
    mixed, equal = turns(10.0, work=9500.0), turns(10.0, work=10000.0)
    assert stats.speed_ratio(mixed, equal).median == pytest.approx(0.95)


def test_a_turn_of_many_batches_counts_by_its_median():
    query = [Turn((0.010, 0.012, 0.050), (16.0, 16.0, 16.0), 0, 0)]
    other = [Turn((0.030, 0.030, 0.030), (16.0, 16.0, 16.0), 0, 0)]
    figure = stats.speed_ratio(query, other)
    assert figure.median == pytest.approx(2.5)
    assert figure.best == pytest.approx(3.0)
    assert stats.median_seconds(query) == 0.012


def test_rounds_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="zip"):
        stats.speed_ratio(turns(1, 1), turns(2))


def test_the_share_of_the_highest_ceiling():
    encoding = turns(1.0, 1.0)  # 2048 tokens/s
    slow, fast = turns(1.0, 1.0, work=1.0e12), turns(1.0, 1.25, work=1.5e12)  # FLOP
    figure = stats.ceiling_share(encoding, [slow, fast], flop_per_token=604e6)
    assert figure.best == pytest.approx(2048 * 604e6 / 1.5e12)
    assert figure.median == pytest.approx(2048 * 604e6 * (1 / 1.5e12 + 1 / 1.2e12) / 2)


def test_memory_is_low_at_its_best():
    assert stats.memory([1_300, 1_100, 1_200]) == stats.Figure(1_100.0, 1_200.0)


def test_floating_point_operations_of_a_token_in_bge_m3s_geometry():
    assert stats.flop_per_token(layers=24, hidden=1024, ffn=4096) == pytest.approx(604e6, rel=1e-3)


def test_throughput_is_of_all_batches_together():
    by_length = [Turn((1.0, 3.0), (10.0, 10.0), 0, 0)]
    together = [Turn((2.0,), (20.0,), 0, 0)]
    assert stats.throughput_ratio(together, by_length).median == pytest.approx(2.0)
    assert stats.median_throughput(by_length) == pytest.approx(5.0)


def test_regret_weighs_the_shapes_and_is_never_below_one():
    def shapes(*seconds: float) -> list[Turn]:
        return [Turn(seconds, (16.0, 2048.0), 0, 0)] * 2

    def regret(ours: list[Turn], *others: list[Turn]) -> float:
        figure = stats.regret(ours, others, (0.25, 0.75))
        assert figure.best == pytest.approx(figure.median)
        return figure.median

    ours, quick_query, quick_batch = shapes(0.02, 2.0), shapes(0.01, 2.0), shapes(0.02, 0.5)
    assert regret(ours, quick_query) == pytest.approx(1 / (0.25 * 0.5 + 0.75))
    assert regret(ours, quick_query, quick_batch) == pytest.approx(1 / (0.25 + 0.75 * 0.25))
    assert regret(quick_batch, ours) == regret(ours) == 1.0  # nothing else is known to be faster
