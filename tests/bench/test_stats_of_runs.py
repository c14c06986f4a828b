"""Statistics of runs, on stored values: nothing is timed."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored import samples

from m3_bench import stats
from m3_bench.documents import Ceiling, Contender, Round, Scenario

RUN = samples.stored("run")
positive = st.floats(1e-3, 1e6)


def who(name: str) -> Contender:
    return next(one for one in RUN.contenders if one.name == name)


def rounds_of(name: str, scenario: str) -> tuple[Round, ...]:
    return next(one.rounds for one in who(name).scenarios if one.scenario == scenario)


def scenario(name: str) -> Scenario:
    return next(one for one in RUN.scenarios if one.name == name)


def of_rounds(*values: float) -> tuple[Round, ...]:
    return tuple(Round((value,), (), (), value, 0.0, 1, 1) for value in values)


def test_percentiles_are_over_all_calls_of_all_rounds():
    rounds = rounds_of("openvino-int8", "length-16")
    calls = sorted(seconds for one in rounds for seconds in one.seconds)
    found = stats.Latency.of([seconds for one in rounds for seconds in one.seconds])
    assert found.calls == len(calls) == 100
    assert found.p50_s == pytest.approx((calls[49] + calls[50]) / 2)
    assert found.p95_s == pytest.approx(calls[94] + 0.05 * (calls[95] - calls[94]))
    assert found.p99_s == pytest.approx(calls[98] + 0.01 * (calls[99] - calls[98]))
    assert found.too_few == ""


@pytest.mark.parametrize(
    ("calls", "told", "words"),
    [
        (100, (True, True), ""),
        (99, (True, False), "p99 needs 100 calls, there are 99"),
        (20, (True, False), "p99 needs 100 calls, there are 20"),
        (19, (False, False), "p95 needs 20 calls, p99 needs 100 calls, there are 19"),
        (1, (False, False), "p95 needs 20 calls, p99 needs 100 calls, there are 1"),
    ],
)
def test_a_percentile_of_too_few_calls_is_not_made_up(calls, told, words):
    found = stats.Latency.of([0.01 * (n + 1) for n in range(calls)])
    assert (found.p95_s is not None, found.p99_s is not None) == told
    assert found.too_few == words


def test_throughput_counts_the_clock_where_callers_share_and_the_calls_where_one_waits():
    alone = Round((2.0, 2.0), (), (), 5.0, 1.0, 1, 1)
    assert stats.tokens_per_s((alone,), Scenario("a", "a", (100, 100), ("dense",), 2)).median == 100.0
    assert stats.tokens_per_s((alone,), Scenario("a", "a", (100, 100), ("dense",), 2, clients=2)).median == 80.0


def test_the_stored_batches_are_as_fast_as_their_rounds():
    found = stats.tokens_per_s(rounds_of("openvino-int8", "batch-16"), scenario("batch-16"))
    values = [16 * 128 / one.seconds[0] for one in rounds_of("openvino-int8", "batch-16")]
    assert found.values == pytest.approx(values)
    assert (found.median, found.low, found.high) == pytest.approx((sorted(values)[2], min(values), max(values)))
    assert found.coverage == 0.9375


@pytest.mark.parametrize(
    ("count", "low", "high", "coverage"),
    # coverage by the binomial distribution: 1 - 2 P(B(n, 1/2) < rank)
    [
        (1, 1, 1, 0.0),
        (2, 1, 2, 0.5),
        (3, 1, 3, 0.75),
        (5, 1, 5, 0.9375),
        (8, 2, 7, 1 - 2 * 9 / 256),
        (10, 2, 9, 1 - 22 / 1024),
    ],
)
def test_intervals_are_the_narrowest_order_statistics_that_hold_the_median_often_enough(count, low, high, coverage):
    found = stats.interval([float(n + 1) for n in range(count)])
    assert (found.low, found.high, found.coverage) == (low, high, pytest.approx(coverage))


@given(st.lists(positive, min_size=1, max_size=40))
def test_an_interval_holds_its_median(values):
    found = stats.interval(values)
    assert found.low <= found.median <= found.high


def test_ratios_are_within_rounds_so_a_slow_machine_slows_both():
    ours, theirs = [100.0, 50.0, 100.0], [50.0, 25.0, 50.0]  # everything at half speed in the second round
    found = stats.ratio(ours, theirs)
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)
    assert stats.warnings_of(ours)  # though each alone is noisy


def test_a_round_that_only_one_of_them_finished_is_left_out_of_the_ratio():
    assert stats.ratio([2.0, 4.0], [1.0]).values == (2.0,)


def test_processor_time_is_none_where_the_system_does_not_say():
    asked = Scenario("a", "a", (500,), ("dense",), 1)
    known = Round((1.0,), (), (), 1.0, 4.0, 1, 1)
    assert stats.cpu_s_per_million_tokens((known, known), asked) == 8000.0
    assert stats.cpu_s_per_million_tokens((known, replace(known, cpu_s=0.0)), asked) is None


def test_cost_is_the_price_of_an_hour_by_the_tokens_of_an_hour():
    # 0.36 an hour, 1000 tokens/s are 3.6 million an hour
    assert stats.cost_per_million_tokens(0.36, 1000.0) == pytest.approx(0.1)
    assert stats.cost_per_million_tokens(0.0, 1000.0) == 0.0


def test_quiet_rounds_raise_no_doubt_and_stored_noise_is_named_with_its_size():
    asked = scenario("batch-32")
    assert stats.warnings_of(stats.tokens_per_s(rounds_of("openvino-int8", "batch-16"), asked).values) == ()
    noisy = stats.tokens_per_s(rounds_of("onnx-int8", "batch-32"), asked)
    (doubt,) = stats.warnings_of(noisy.values)
    assert doubt.startswith("tokens/s ") and "% " in doubt and "measure again" in doubt


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            (100, 140, 90, 130, 100),
            "vary by 19 % between rounds: other work on the machine? measure again with more rounds",
        ),
        ((100, 97, 93, 90, 86), "fall by 14 % from the first rounds to the last: heat, or other work that began?"),
        ((86, 90, 93, 97, 100), "rise by 16 % from the first rounds to the last: other work that ended"),
        ((100, 100), "2 rounds: how far rounds differ is not known"),
    ],
)
def test_doubts_say_what_is_wrong_and_what_to_do(values, expected):
    (doubt,) = stats.warnings_of([float(value) for value in values])
    assert expected in doubt
    assert "measure again" in doubt


def test_a_small_steady_change_is_no_drift():
    assert stats.warnings_of([100.0, 99.5, 99.0, 98.5, 98.0]) == ()


def test_the_ceiling_is_the_fastest_engine_that_is_exact():
    ceilings = (
        Ceiling("slow", "int8", (1e12, 1.2e12, 1.1e12)),
        Ceiling("fast", "int8", (2e12, 2.2e12, 9e12)),
        Ceiling("wrong", "int8", (7e12,), "not exact"),
        Ceiling("none", "bf16", (), "no bf16"),
    )
    assert stats.ceiling_flop_per_s(ceilings, "int8") == 2.2e12
    assert stats.ceiling_flop_per_s(ceilings, "bf16") is None
    assert stats.ceiling_flop_per_s(ceilings, "fp64") is None
